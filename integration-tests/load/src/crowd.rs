//! The threads that watchers live on: one for each processor, each with its own connections and its own eye on them.
//!
//! A change comes to thousands of sockets at once. In one pool the thread that is told of them has all of them to read, mostly
//! alone, until another takes some of it over: it was the pool that was measured. Here each thread is told of its share, as a
//! fleet's machines are.

use std::thread;

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
    task::JoinHandle,
};

use crate::failure::{During, Result};

/// The threads. They end with this.
#[derive(Debug)]
pub(crate) struct Crowd(Vec<Member>);

#[derive(Debug)]
struct Member {
    tasks: Handle,
    /// The thread ends when this is gone.
    _stay: oneshot::Sender<()>,
}

impl Crowd {
    /// Starts them.
    pub(crate) fn start() -> Result<Self> {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        (0..threads).map(|_| Member::start()).collect::<Result<_>>().map(Self)
    }

    /// Spawns a task on the thread of this place. What it connects stays there.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        place: usize,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.0[place % self.0.len()].tasks.spawn(task)
    }
}

impl Member {
    fn start() -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build().during("cannot start threads")?;
        let tasks = runtime.handle().clone();
        let (stay, stays) = oneshot::channel();
        let thread = thread::Builder::new().name("watchers".to_owned());
        // An error of the channel is its end.
        thread.spawn(move || drop(runtime.block_on(stays))).during("cannot start threads")?;
        Ok(Self { tasks, _stay: stay })
    }
}
