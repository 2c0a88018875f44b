//! One process of the fleet, as the test holds it.
//!
//! It is killed when it is dropped, and ends by itself when its standard input does: none outlives its test.

use std::{net::SocketAddr, path::Path, process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use super::instance::Conduct;
use crate::process::within;

/// What takes longer than this never comes.
const PATIENCE: Duration = Duration::from_mins(1);

/// A process of the fleet.
#[derive(Debug)]
pub struct Process {
    name: String,
    address: SocketAddr,
    child: Child,
    pid: Pid,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts one and waits until it is registered.
    pub async fn start(program: impl AsRef<Path>, name: &str, registry: SocketAddr) -> Self {
        let mut child = Command::new(program.as_ref())
            .env_clear()
            .args([name, &registry.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the binary can be started");
        let pid =
            child.id().and_then(|id| Pid::from_raw(id.cast_signed())).expect("a running child has an id");
        let orders = child.stdin.take().expect("standard input is piped");
        let answers = BufReader::new(child.stdout.take().expect("standard output is piped")).lines();
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut process = Self { name: name.to_owned(), address, child, pid, orders, answers };
        let ready = process.answer().await;
        let address = ready.strip_prefix("ready ").and_then(|address| address.parse().ok());
        process.address = address.unwrap_or_else(|| panic!("{name} says `{ready}` instead of its address"));
        process
    }

    /// By which it is registered.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Has it behave so from now on.
    pub async fn conduct(&mut self, conduct: Conduct) {
        let answer = self.order(conduct.word()).await;
        assert_eq!(answer, conduct.word(), "{} was told so", self.name);
    }

    /// How many calls it has got since it was started.
    pub async fn calls(&mut self) -> u64 {
        let answer = self.order("calls").await;
        answer.parse().unwrap_or_else(|_| panic!("{} says `{answer}` instead of a number", self.name))
    }

    /// Has it drain, finish what it has, deregister and end.
    pub async fn leave(mut self) {
        self.tell("leave").await;
        self.ended().await;
    }

    /// SIGTERM: it drains, finishes what it has, deregisters and ends. What it knew of its callers by then.
    pub async fn terminated(mut self) -> String {
        self.signal(Signal::TERM);
        let said = self.answer().await;
        self.ended().await;
        said.strip_prefix("drained ").unwrap_or_else(|| panic!("it says `{said}` of its drain")).to_owned()
    }

    /// Has it deregister and end at once, whatever it has.
    pub async fn quit(mut self) {
        self.tell("quit").await;
        self.ended().await;
    }

    /// Closes its standard input, and waits for its end.
    pub async fn end(self) {
        let Self { name, child, orders, .. } = self;
        drop(orders);
        ended(&name, child).await;
    }

    /// SIGKILL, without waiting.
    pub fn kill(&mut self) {
        self.child.start_kill().expect("it runs");
    }

    /// Waits for the end of one that was killed.
    pub async fn killed(mut self) {
        let status = within("a killed process to end", PATIENCE, self.child.wait()).await;
        assert!(!status.expect("a child can be waited for").success(), "{} ended by itself", self.name);
    }

    /// SIGSTOP: its kernel goes on taking connections and bytes, and nobody answers, until [`Self::thaw`].
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).expect("it runs");
    }

    async fn ended(self) {
        // Its input stays open until then: an end of it would be another order.
        let Self { name, child, orders, .. } = self;
        ended(&name, child).await;
        drop(orders);
    }

    async fn order(&mut self, line: &str) -> String {
        self.tell(line).await;
        self.answer().await
    }

    async fn tell(&mut self, line: &str) {
        let told = self.orders.write_all(format!("{line}\n").as_bytes()).await;
        told.unwrap_or_else(|error| panic!("{} cannot be told `{line}`: {error}", self.name));
    }

    async fn answer(&mut self) -> String {
        let line = within("an answer of a process", PATIENCE, self.answers.next_line()).await;
        let line = line.expect("its output can be read");
        line.unwrap_or_else(|| panic!("{} ended without an answer; its standard error says why", self.name))
    }
}

async fn ended(name: &str, mut child: Child) {
    let status = within("a process to end", PATIENCE, child.wait()).await;
    let status = status.expect("a child can be waited for");
    assert!(status.success(), "{name} ended with {status}");
}
