//! A server process: started, watched, killed. Owns its directory; both are gone when it is dropped.

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::{
    clock,
    failure::{During, Failure, Result},
};

/// A server that takes longer than this to take connections never will.
const PATIENCE: Duration = Duration::from_mins(1);
/// Where it logs, in its directory.
const LOG: &str = "log";

/// How to start a server. Started again, it finds what it left in its directory.
#[derive(Debug)]
pub(crate) struct Recipe {
    /// For messages.
    pub(crate) name: &'static str,
    /// The program.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) arguments: Vec<OsString>,
    /// Where it will listen.
    pub(crate) address: SocketAddr,
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Process {
    recipe: Recipe,
    child: Child,
    id: u32,
    /// Removed with the process.
    directory: TempDir,
}

impl Process {
    /// Starts a server. `recipe` gets its directory, which is new, below `parent`.
    pub(crate) async fn start(parent: &Path, recipe: impl FnOnce(&Path) -> Result<Recipe>) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("load-")
            .tempdir_in(parent)
            .during(&format!("cannot make a directory in {}", parent.display()))?;
        let recipe = recipe(directory.path())?;
        let (child, id) = spawn(&recipe, directory.path())?;
        let mut process = Self { recipe, child, id, directory };
        process.listens().await?;
        Ok(process)
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.recipe.address
    }

    /// Kills it as a power cut would, as far as the process is concerned, and starts it again on what it left. It may not
    /// take connections yet.
    pub(crate) async fn kill_and_start(&mut self) -> Result<()> {
        self.child.kill().await.during(&format!("cannot kill {}", self.recipe.name))?;
        (self.child, self.id) = spawn(&self.recipe, self.directory.path())?;
        Ok(())
    }

    /// Processor time it has used since it was started, in steps of the system's clock, commonly 10 ms.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let stat = self.proc("stat")?;
        // The name, in parentheses, may hold anything; the numbers come after it.
        let numbers = stat.rsplit(") ").next().unwrap_or_default();
        let tick = |at: usize| numbers.split(' ').nth(at).and_then(|text| text.parse::<u64>().ok());
        let (Some(user), Some(system)) = (tick(11), tick(12)) else {
            return Err(Failure(format!("/proc/{}/stat is not as expected: {stat}", self.id)));
        };
        let hertz = rustix::param::clock_ticks_per_second();
        Ok(Duration::from_nanos((user + system) * (1_000_000_000 / hertz)))
    }

    /// Memory that is resident, in bytes.
    pub(crate) fn resident(&self) -> Result<u64> {
        let status = self.proc("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.map(|kib| kib * 1024).ok_or_else(|| Failure(format!("/proc/{}/status has no VmRSS", self.id)))
    }

    fn proc(&self, file: &str) -> Result<String> {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.id))
            .during(&format!("{} has ended, its log is lost", self.recipe.name))
    }

    /// Waits until it takes connections.
    async fn listens(&mut self) -> Result<()> {
        let end = clock::now() + PATIENCE;
        while tokio::net::TcpStream::connect(self.recipe.address).await.is_err() {
            if let Ok(Some(status)) = self.child.try_wait() {
                let log = std::fs::read_to_string(self.directory.path().join(LOG)).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(10).collect();
                let last: Vec<&str> = last.into_iter().rev().collect();
                return Err(Failure(format!(
                    "{} ended at its start, {status}:\n{}",
                    self.recipe.name,
                    last.join("\n")
                )));
            }
            if clock::now() > end {
                return Err(Failure(format!(
                    "{} does not listen on {} after {PATIENCE:?}",
                    self.recipe.name, self.recipe.address
                )));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}

/// An address of this machine that is free now.
pub(crate) fn free_address() -> Result<SocketAddr> {
    std::net::TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .during("cannot find a free port")
}

fn spawn(recipe: &Recipe, directory: &Path) -> Result<(Child, u32)> {
    let log = std::fs::OpenOptions::new().append(true).create(true).open(directory.join(LOG));
    let log = log.during(&format!("cannot write a log in {}", directory.display()))?;
    let stdout = log.try_clone().during("cannot share the log")?;
    let child = Command::new(&recipe.program)
        .args(&recipe.arguments)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .during(&format!("cannot start {} ({})", recipe.name, recipe.program.display()))?;
    let id = child.id().ok_or_else(|| Failure(format!("{} ended at once", recipe.name)))?;
    // A program may run where the thread that starts it may, and this tool's workers are pinned.
    let processors = processors(&id.to_string())?;
    if processors != self::processors("self")? {
        return Err(Failure(format!("{} may not run where this tool may, but on {processors}", recipe.name)));
    }
    Ok((child, id))
}

/// Where a process may run, as the system says it.
fn processors(id: &str) -> Result<String> {
    let status =
        std::fs::read_to_string(format!("/proc/{id}/status")).during("a server has ended at once")?;
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    Ok(line.unwrap_or_default().trim().to_owned())
}
