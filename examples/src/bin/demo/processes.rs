//! The child processes. Each is this same program under another name, and is killed when its handle is dropped.

use std::{
    path::Path,
    process::{ExitStatus, Stdio},
};

use client_sdk::{
    model::Address,
    runtime::{Runtime, Task},
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::Outcome;

/// The name under which this program is the registry's binary.
pub(crate) const REGISTRY: &str = "registry-server";
/// The name under which this program is the greeter.
pub(crate) const GREETER: &str = "greeter";

/// A registry on the embedded store.
pub(crate) struct RegistryProcess {
    child: Child,
    address: Address,
    /// Reads the log to its end, so that the registry is never stopped by a full pipe.
    _log: Task,
}

/// A greeter; what it says goes to our standard output.
pub(crate) struct Greeter(Child);

impl RegistryProcess {
    /// Starts it, and waits until it says where it listens. Prints what it says until then.
    pub(crate) async fn start(listen: &str, directory: &Path) -> Outcome<Self> {
        let mut child = this_program_as(REGISTRY)?
            .args(["--listen", listen, "--storage", "embedded", "--log", "info", "--log-format", "text"])
            .arg("--data-dir")
            .arg(directory.join("registry-data"))
            .stderr(Stdio::piped())
            .spawn()?;
        let log = child.stderr.take().ok_or("the registry's log is not there")?;
        let mut log = BufReader::new(log).lines();
        let address = loop {
            let line = log.next_line().await?.ok_or("the registry ended before it listened")?;
            let text = line.split_once(" INFO ").map_or(line.as_str(), |(_, text)| text).trim();
            println!("  registry: {text}");
            if let Some(address) = text.strip_prefix("listening on ") {
                break address.parse()?;
            }
        };
        let rest = async move { while let Ok(Some(_)) = log.next_line().await {} };
        Ok(Self { child, address, _log: Runtime::tokio().spawn(rest) })
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    pub(crate) async fn kill(mut self) -> Outcome {
        Ok(self.child.kill().await?)
    }

    pub(crate) async fn stop(mut self) -> Outcome {
        expect_success(REGISTRY, terminate(&mut self.child).await?)
    }
}

impl Greeter {
    /// Starts it. Calls take it 2 ms, so that there are always some in flight; its lease is short, so that its end can be
    /// seen.
    pub(crate) fn start(name: &str, registry: &Address) -> Outcome<Self> {
        let mut command = this_program_as(GREETER)?;
        command.args(["--name", name, "--takes", "2ms", "--ttl", "3s", "--registry", registry.as_str()]);
        Ok(Self(command.spawn()?))
    }

    pub(crate) async fn kill(&mut self) -> Outcome {
        Ok(self.0.kill().await?)
    }

    /// Asks it to end, and waits until it did.
    pub(crate) async fn stop(&mut self) -> Outcome {
        expect_success(GREETER, terminate(&mut self.0).await?)
    }
}

fn this_program_as(name: &str) -> Outcome<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg0(name).stdin(Stdio::null()).kill_on_drop(true);
    Ok(command)
}

async fn terminate(child: &mut Child) -> Outcome<ExitStatus> {
    let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    kill_process(id.ok_or("the process has ended already")?, Signal::TERM)?;
    Ok(child.wait().await?)
}

fn expect_success(name: &str, status: ExitStatus) -> Outcome {
    if status.success() { Ok(()) } else { Err(format!("{name} ended with {status}").into()) }
}
