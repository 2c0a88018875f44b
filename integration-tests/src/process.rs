//! Real server processes: start, stop, kill, freeze; their log and their memory.
//!
//! A [`Server`] is killed when it is dropped, so none outlives its test. Waiting is on log lines and exit statuses, never
//! on time; every wait has an overall limit that fails loudly.

use std::{
    future::Future,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use registry_proto::v1::registry_client::RegistryClient;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::watch,
    time::timeout,
};
use tonic::transport::{Channel, Endpoint};

/// A client of the registry.
pub type Client = RegistryClient<Channel>;

/// What the protocol allows one message to have.
pub const MAX_MESSAGE: usize = 1 << 20;
/// A start or an end that takes longer than this never comes.
const PATIENCE: Duration = Duration::from_mins(1);

/// How to start the server under test, in a directory of this test's own.
///
/// Only for tests of this package: cargo builds the binary with them.
#[macro_export]
macro_rules! server_setup {
    () => {
        $crate::process::Setup::new(env!("CARGO_BIN_EXE_registry-server-under-test"))
    };
}

/// How to start a server.
#[derive(Clone, Debug)]
pub struct Setup {
    program: PathBuf,
    flags: Vec<String>,
    variables: Vec<(String, String)>,
    listen: SocketAddr,
    /// In units of 512 bytes.
    largest_file: Option<u64>,
    /// Removed with the last copy.
    data: Arc<TempDir>,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    pid: Pid,
    address: SocketAddr,
    log: watch::Receiver<Vec<String>>,
}

/// A server that ended.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// What it had logged.
    pub log: String,
}

impl Setup {
    /// A server with the flags' defaults, a free port, and a data directory of its own.
    pub fn new(program: &str) -> Self {
        let data = tempfile::tempdir().expect("a directory for the test's data");
        Self {
            program: program.into(),
            flags: Vec::new(),
            variables: Vec::new(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            largest_file: None,
            data: Arc::new(data),
        }
    }

    /// Adds a flag.
    #[must_use]
    pub fn with(mut self, flag: &str, value: &str) -> Self {
        self.flags.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    /// Sets an environment variable. There are no others.
    #[must_use]
    pub fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Makes glibc give back what is freed, so that [`Server::resident_bytes`] is what is held and not what once was:
    /// large blocks are mapped on their own, and there is one arena, which is trimmed. Other allocators do not read it.
    #[must_use]
    pub fn giving_memory_back(self) -> Self {
        self.with_variable("MALLOC_ARENA_MAX", "1")
            .with_variable("MALLOC_MMAP_THRESHOLD_", "32768")
            .with_variable("MALLOC_TRIM_THRESHOLD_", "65536")
    }

    /// Where to listen: for servers that come back at the same address.
    #[must_use]
    pub fn at(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// Lets no file of the server grow beyond so many bytes: the system then writes a part and refuses the rest, for root
    /// too, as a disk does that has become full.
    #[must_use]
    pub fn with_files_up_to(mut self, bytes: u64) -> Self {
        self.largest_file = Some(bytes / 512);
        self
    }

    /// The same server in the same directory, whose files may grow.
    #[must_use]
    pub fn with_room_again(mut self) -> Self {
        self.largest_file = None;
        self
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.data.path().join("data")
    }

    /// Starts a server and waits until it listens.
    pub async fn start(&self) -> Server {
        let (child, log) = self.spawn();
        let mut listening = log.clone();
        let listens = listening.wait_for(|lines| address(lines).is_some());
        let Ok(lines) = within("the server to listen", PATIENCE, listens).await.map(|lines| lines.clone())
        else {
            panic!("the server ended at its start:\n{}", log.borrow().join("\n"));
        };
        let address = address(&lines).expect("it was just there");
        let pid =
            child.id().and_then(|id| Pid::from_raw(id.cast_signed())).expect("a running child has an id");
        Server { child, pid, address, log }
    }

    /// Starts a server that is not expected to run, and waits for its end.
    pub async fn ends(&self) -> Ended {
        let (child, log) = self.spawn();
        ended(child, log).await
    }

    fn spawn(&self) -> (Child, watch::Receiver<Vec<String>>) {
        let mut command = match self.largest_file {
            None => Command::new(&self.program),
            // The limit comes with a signal that would end the server instead.
            Some(blocks) => {
                let mut shell = Command::new("/bin/sh");
                let limited = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
                shell.args(["-c", &limited]).arg(&self.program);
                shell
            }
        };
        let mut child = command
            .env_clear()
            .envs(self.variables.iter().cloned())
            .args(["--listen", &self.listen.to_string()])
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the server's binary can be started");
        let stderr = child.stderr.take().expect("standard error is piped");
        let (log, lines) = watch::channel(Vec::new());
        tokio::spawn(async move {
            let mut stderr = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = stderr.next_line().await {
                log.send_modify(|lines| lines.push(line));
            }
        });
        (child, lines)
    }
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A connection of its own, with the transport's defaults.
    pub async fn channel(&self) -> Channel {
        self.endpoint().connect().await.expect("the server takes connections")
    }

    /// How to connect, for connections that are set differently.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::from_shared(format!("http://{}", self.address)).expect("a socket address makes a URI")
    }

    /// A client on a connection of its own that refuses any message of more than the protocol allows.
    pub async fn client(&self) -> Client {
        RegistryClient::new(self.channel().await).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Waits until the log has a line that contains `text`.
    pub async fn logged(&self, text: &str) -> String {
        let mut log = self.log.clone();
        let has = |lines: &Vec<String>| lines.iter().any(|line| line.contains(text));
        let found = within(text, PATIENCE, log.wait_for(has)).await.map(|lines| lines.clone());
        let lines =
            found.unwrap_or_else(|_| panic!("`{text}` is not in the log:\n{}", self.log.borrow().join("\n")));
        lines.into_iter().find(|line| line.contains(text)).expect("it was just there")
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.borrow().join("\n")
    }

    /// SIGKILL, and waits for the end.
    pub async fn kill(self) -> Ended {
        self.signal(Signal::KILL);
        self.ended().await
    }

    /// SIGTERM, without waiting.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// SIGSTOP: it does nothing until [`Self::thaw`].
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Waits for its end.
    pub async fn ended(self) -> Ended {
        ended(self.child, self.log).await
    }

    /// The memory that is resident, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid.as_raw_nonzero());
        let status = std::fs::read_to_string(Path::new(&path)).expect("Linux tells a process's memory");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS is there");
        let kib: u64 =
            line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("VmRSS is in kB");
        kib * 1024
    }

    /// How many of its threads are kept to one processor, of how many there are.
    pub fn pinned_threads(&self) -> (usize, usize) {
        let threads = format!("/proc/{}/task", self.pid.as_raw_nonzero());
        let threads = std::fs::read_dir(Path::new(&threads)).expect("Linux tells a process's threads");
        // One that ends meanwhile counts no more.
        let processors = threads.filter_map(|thread| {
            let status = std::fs::read_to_string(thread.ok()?.path().join("status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
            Some(line.trim().to_owned())
        });
        let processors: Vec<_> = processors.collect();
        let one = processors.iter().filter(|list| list.chars().all(|digit| digit.is_ascii_digit()));
        (one.count(), processors.len())
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).expect("the server is running");
    }
}

/// Waits, but not for ever: panics with what was waited for.
pub async fn within<F: Future>(what: &str, limit: Duration, future: F) -> F::Output {
    let Ok(output) = timeout(limit, future).await else { panic!("waited {limit:?} in vain for {what}") };
    output
}

async fn ended(mut child: Child, mut log: watch::Receiver<Vec<String>>) -> Ended {
    let status =
        within("the server to end", PATIENCE, child.wait()).await.expect("a child can be waited for");
    // The log is whole when its reader is gone.
    let _ = within("the end of the log", PATIENCE, log.wait_for(|_| false)).await;
    let log = log.borrow().join("\n");
    Ended { status, log }
}

fn address(lines: &[String]) -> Option<SocketAddr> {
    let line = lines.iter().find(|line| line.contains("listening on "))?;
    line.rsplit("listening on ").next()?.split(['"', ' ']).next()?.parse().ok()
}
