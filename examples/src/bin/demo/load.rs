//! The calls: a few callers, each with a call every few milliseconds, and what came of them.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use client_sdk::{
    channel::{BalancedChannel, ChannelError},
    model::Address,
    runtime::{Runtime, Task},
};
use examples::proto::{GreetRequest, greeter_client::GreeterClient};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tonic::{Request, Status};

/// As many as call at the same time.
const CALLERS: usize = 8;
/// Between two calls of one caller: about 1,600 calls a second in all.
const PAUSE: Duration = Duration::from_millis(5);
/// A call that takes so long has failed.
const PATIENCE: Duration = Duration::from_secs(2);

/// Calls that go on in the background until this is dropped.
pub(crate) struct Load {
    results: Arc<watch::Sender<Results>>,
    killed: Arc<OnceLock<Address>>,
    /// Dropping them ends them.
    _callers: Vec<Task>,
}

#[derive(Clone, Debug, Default)]
struct Results {
    /// Of all calls before the last beginning.
    before: Tally,
    /// Since then.
    now: Tally,
}

/// What came of calls.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// By who answered.
    pub(crate) answers: BTreeMap<String, u64>,
    /// Calls that were written to a connection of the killed greeter when it died.
    pub(crate) lost_with_killed: u64,
    /// All other calls without an answer: why.
    pub(crate) failures: Vec<String>,
}

impl Load {
    pub(crate) fn start(channel: &BalancedChannel, runtime: &Runtime) -> Self {
        let results = Arc::new(watch::Sender::new(Results::default()));
        let killed = Arc::new(OnceLock::new());
        let caller = |_| runtime.spawn(call(channel.clone(), Arc::clone(&results), Arc::clone(&killed)));
        let callers = (0..CALLERS).map(caller).collect();
        Self { results, killed, _callers: callers }
    }

    /// Counts from here.
    pub(crate) fn begin(&self) {
        self.results.send_modify(|results| {
            let done = std::mem::take(&mut results.now);
            results.before.add(done);
        });
    }

    /// Counts from here until so many calls have ended.
    pub(crate) async fn calls(&self, calls: u64) -> Tally {
        self.begin();
        // The callers hold a sender each, and so does this: it cannot close.
        let _ = self.results.subscribe().wait_for(|results| results.now.calls() >= calls).await;
        self.so_far()
    }

    /// What came of the calls since the last count began.
    pub(crate) fn so_far(&self) -> Tally {
        self.results.borrow().now.clone()
    }

    /// The greeter at this address is about to be killed: calls that it has in flight are lost.
    pub(crate) fn expect_loss_at(&self, address: Option<Address>) {
        if let Some(address) = address {
            // One greeter is killed in the whole story.
            let _ = self.killed.set(address);
        }
    }

    /// Ends the calls: what came of all of them.
    pub(crate) fn end(self) -> Tally {
        let Results { mut before, now } = self.results.borrow().clone();
        before.add(now);
        before
    }
}

impl Tally {
    /// How many calls have ended.
    pub(crate) fn calls(&self) -> u64 {
        self.answers.values().sum::<u64>() + self.lost_with_killed + self.failures.len() as u64
    }

    /// The share of the answers that came from this greeter, in percent.
    #[allow(clippy::cast_precision_loss)] // some thousand calls
    pub(crate) fn share(&self, name: &str) -> f64 {
        let all = self.answers.values().sum::<u64>().max(1);
        100.0 * self.answers.get(name).copied().unwrap_or(0) as f64 / all as f64
    }

    fn add(&mut self, other: Self) {
        for (name, answers) in other.answers {
            *self.answers.entry(name).or_default() += answers;
        }
        self.lost_with_killed += other.lost_with_killed;
        self.failures.extend(other.failures);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} calls:", self.calls())?;
        for name in self.answers.keys() {
            write!(f, " {name} {:.1}%,", self.share(name))?;
        }
        write!(f, " {} failed", self.failures.len())?;
        if self.lost_with_killed > 0 {
            write!(f, ", {} lost in flight to the killed one", self.lost_with_killed)?;
        }
        Ok(())
    }
}

async fn call(
    channel: BalancedChannel,
    results: Arc<watch::Sender<Results>>,
    killed: Arc<OnceLock<Address>>,
) {
    let mut greeter = GreeterClient::new(channel);
    let mut turns = interval(PAUSE);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        let mut request = Request::new(GreetRequest { name: "demo".to_owned() });
        request.set_timeout(PATIENCE);
        let outcome = greeter.greet(request).await;
        results.send_modify(|Results { now, .. }| match outcome {
            Ok(answer) => *now.answers.entry(answer.into_inner().answered_by).or_default() += 1,
            Err(status) if is_lost_with(killed.get(), &status) => now.lost_with_killed += 1,
            Err(status) => now.failures.push(format!("{:?}: {}", status.code(), status.message())),
        });
    }
}

/// Whether the call had been written to a connection of the killed greeter when that connection ended.
fn is_lost_with(killed: Option<&Address>, status: &Status) -> bool {
    matches!(ChannelError::of(status), Some(ChannelError::Lost { address, .. }) if Some(address) == killed)
}
