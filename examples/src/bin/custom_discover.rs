//! A [`Discover`] of one's own: the instances come from a file, one `address weight` a line, which is read again when the
//! application says so (a real one would on SIGHUP).
//!
//! Three methods are enough, and everything works over it: here a [`BalancedChannel`]. What the trait asks for: `key` names the
//! view (here there is one file, so one view), `discover` reads it, and `watch` tells of changes; a broadcast that
//! overflows loses the oldest of them, which the SDK notices and makes up for by reading again.
//!
//! Needs nothing else to run:
//!
//! ```text
//! cargo run -p examples --bin custom_discover
//! ```

#![allow(clippy::print_stdout)] // printing is what it is for

use std::{
    collections::BTreeMap,
    error::Error,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_broadcast::{InactiveReceiver, Receiver, Sender};
use client_sdk::{
    channel::BalancedChannel,
    discover::Discover,
    model::{Address, Change, Endpoint, Instance},
};
use examples::{
    LocalGreeter,
    proto::{GreetRequest, greeter_client::GreeterClient},
};

/// Discovers the instances that a file lists.
struct FileDiscover {
    path: PathBuf,
    known: Mutex<Vec<Arc<Instance>>>,
    changes: Sender<Change<()>>,
    /// Keeps the channel open while nobody listens.
    listeners: InactiveReceiver<Change<()>>,
}

#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("cannot read the list of instances: {0}")]
    Read(#[from] io::Error),
    #[error("line {0} of the list is not `address weight`")]
    Line(usize),
}

impl FileDiscover {
    fn open(path: &Path) -> Result<Self, FileError> {
        let (mut changes, listeners) = async_broadcast::broadcast(16);
        changes.set_overflow(true); // a slow listener must not hold up the others
        changes.set_await_active(false);
        let known = Mutex::new(read(path)?);
        Ok(Self { path: path.to_owned(), known, changes, listeners: listeners.deactivate() })
    }

    /// Reads the file again and tells everyone what is different. A file that cannot be read changes nothing.
    fn reload(&self) -> Result<(), FileError> {
        let all = read(&self.path)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let change = Change::between((), &known, all.as_slice().into(), None);
        *known = all;
        // An error means that nobody listens.
        let _ = self.changes.try_broadcast(change);
        Ok(())
    }
}

impl Discover for FileDiscover {
    type Key = ();
    type Error = FileError;

    async fn discover(&self, _: &Endpoint) -> Result<Vec<Arc<Instance>>, FileError> {
        Ok(self.known.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn key(&self, _: &Endpoint) -> Self::Key {}

    fn watch(&self) -> Option<Receiver<Change<()>>> {
        Some(self.listeners.activate_cloned())
    }
}

fn read(path: &Path) -> Result<Vec<Arc<Instance>>, FileError> {
    let parse = |line: &str| {
        let (address, weight) = line.split_once(' ')?;
        let address: Address = address.parse().ok()?;
        Some(Arc::new(Instance::builder(address).weight(weight.trim().parse().ok()?).build()))
    };
    let text = std::fs::read_to_string(path)?;
    text.lines().enumerate().map(|(n, line)| parse(line).ok_or(FileError::Line(n + 1))).collect()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (alice, bob) = (LocalGreeter::start("alice").await?, LocalGreeter::start("bob").await?);
    let directory = tempfile::tempdir()?;
    let list = directory.path().join("greeters");
    std::fs::write(&list, format!("{} 1\n", alice.address()))?;

    let discover = Arc::new(FileDiscover::open(&list)?);
    let channel = BalancedChannel::builder(Arc::clone(&discover), Endpoint::new("greeter")).build();
    channel.wait_until(|now| now.chosen() == 1).await;
    println!("the file lists alice: {}", call(&channel).await?);

    std::fs::write(&list, format!("{} 1\n{} 3\n", alice.address(), bob.address()))?;
    discover.reload()?;
    channel.wait_until(|now| now.chosen() == 2).await;
    println!("it lists alice and bob, who has weight 3: {}", call(&channel).await?);

    std::fs::write(&list, format!("{} 3\n", bob.address()))?;
    discover.reload()?;
    channel.wait_until(|now| now.chosen() == 1).await;
    println!("it lists bob: {}", call(&channel).await?);
    Ok(())
}

/// Calls a hundred times, and says who answered how often.
async fn call(channel: &BalancedChannel) -> Result<String, tonic::Status> {
    let mut greeter = GreeterClient::new(channel.clone());
    let mut answers = BTreeMap::new();
    for _ in 0..100 {
        let answer = greeter.greet(GreetRequest { name: "file".to_owned() }).await?.into_inner();
        *answers.entry(answer.answered_by).or_insert(0) += 1;
    }
    Ok(answers.iter().map(|(who, calls)| format!("{who} {calls}")).collect::<Vec<_>>().join(", "))
}
