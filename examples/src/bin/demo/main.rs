//! The whole story in separate processes: a registry, three greeters, and a caller whose calls are spread over whatever is
//! registered right now, while weights change, a greeter is killed, another drains, and the registry is killed and
//! started again.
//!
//! It prints who got which share, and how many calls failed. None may, save those that were already written to a
//! connection of the killed greeter when it died: only their caller can know whether they may be made again, so the channel
//! does not. They are counted apart. Ends with an error if any other call failed, or if shares are off the weights.
//!
//! ```text
//! cargo run -p examples --bin demo
//! ```
//!
//! The processes are this same program under other names: as `registry-server` it is the registry's binary, as `greeter`
//! the example of that name. So nothing else needs to be built.
//!
//! | file | what it owns |
//! |---|---|
//! | `main` | the story |
//! | `processes` | the child processes: start, stop, kill |
//! | `load` | the calls, and what came of them |

#![allow(clippy::print_stdout, clippy::print_stderr)] // printing is what it is for

#[path = "../greeter.rs"]
mod greeter;
mod load;
mod processes;

use std::{error::Error, path::Path, process::ExitCode, sync::Arc, time::Duration};

use client_sdk::{
    channel::{BalancedChannel, Snapshot, Standing},
    client::RegistryClient,
    discover::RegistryDiscover,
    model::Endpoint,
    runtime::Runtime,
};
use load::{Load, Tally};
use processes::{GREETER, Greeter, REGISTRY, RegistryProcess};
use registry_proto::v1::{
    ClearOverride, Override, ServiceKey, SetOverrideRequest, set_override_request::Action,
};

/// The whole story takes about 10 s. If it takes so long, something hangs.
const AT_MOST: Duration = Duration::from_mins(1);
/// Calls from which the shares are read.
const MANY: u64 = 1_000;
/// How far a share may be off its weight, in percent of all calls: a few calls cross over when something changes.
const TOLERANCE: f64 = 3.0;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    match Path::new(&name).file_name().and_then(|name| name.to_str()) {
        Some(REGISTRY) => registry_server::cli::main(),
        Some(GREETER) => exit(greeter::main()),
        _ => exit(demo()),
    }
}

fn exit(outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn demo() -> Outcome {
    match tokio::time::timeout(AT_MOST, story()).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("the demo is not over after {AT_MOST:?}").into()),
    }
}

async fn story() -> Outcome {
    let directory = tempfile::tempdir()?;
    let runtime = Runtime::tokio();

    say("a registry starts, and three greeters of equal weight");
    let registry = RegistryProcess::start("127.0.0.1:0", directory.path()).await?;
    let address = registry.address().clone();
    let mut alice = Greeter::start("alice", &address)?;
    let mut bob = Greeter::start("bob", &address)?;
    let mut carol = Greeter::start("carol", &address)?;

    let client = RegistryClient::builder().endpoint(address.clone()).build()?;
    let discover = Arc::new(RegistryDiscover::builder(client.clone()).build());
    let channel = BalancedChannel::builder(discover, Endpoint::new("greeter")).build();
    channel.wait_until(|now| now.chosen() == 3).await;
    let load = Load::start(&channel, &runtime);

    let story = async {
        shares(&load.calls(MANY).await, &[("alice", 1), ("bob", 1), ("carol", 1)])?;

        say("an operator gives carol weight 4");
        client.set_override(weigh("carol", Some(4))).await?;
        channel.wait_until(|now| weight(now, "carol") == Some(4)).await;
        shares(&load.calls(MANY).await, &[("alice", 1), ("bob", 1), ("carol", 4)])?;

        say("bob is killed (SIGKILL); he stays registered until his lease ends");
        let bobs_address = channel.snapshot().instance("bob").map(|bob| bob.instance.address.clone());
        load.expect_loss_at(bobs_address);
        load.begin();
        let killed_at = runtime.now();
        let since = |then| runtime.now().saturating_sub(then).as_millis();
        bob.kill().await?;
        channel.wait_until(|now| now.chosen() == 2).await;
        println!("  passed over after {} ms: {}", since(killed_at), load.so_far());
        if weight(&channel.snapshot(), "bob").is_none() {
            return Err("bob left the registry before his lease ended".into());
        }
        shares(&load.calls(MANY).await, &[("alice", 1), ("carol", 4)])?;
        channel.wait_until(|now| weight(now, "bob").is_none()).await;
        println!("  his lease ended after {} ms", since(killed_at));

        say("the registry is killed (SIGKILL), and calls go on");
        registry.kill().await?;
        shares(&load.calls(MANY).await, &[("alice", 1), ("carol", 4)])?;

        say("it starts again on the same directory; then the operator takes carol's weight back");
        let registry = RegistryProcess::start(&address.to_string(), directory.path()).await?;
        client.set_override(weigh("carol", None)).await?;
        channel.wait_until(|now| weight(now, "carol") == Some(1)).await;
        shares(&load.calls(MANY).await, &[("alice", 1), ("carol", 1)])?;

        say("bob starts again");
        bob = Greeter::start("bob", &address)?;
        channel.wait_until(|now| now.chosen() == 3).await;
        shares(&load.calls(MANY).await, &[("alice", 1), ("bob", 1), ("carol", 1)])?;

        say("alice is stopped (SIGTERM), and drains");
        load.begin();
        alice.stop().await?;
        println!("  meanwhile: {}", load.so_far());
        shares(&load.calls(MANY).await, &[("bob", 1), ("carol", 1)])?;

        Ok((load.end(), registry))
    };
    let told: Outcome<(Tally, RegistryProcess)> = tokio::select! {
        // From its first greeter on the caller must never be left with an empty list.
        _ = channel.wait_until(|now| now.instances.is_empty()) => Err("the caller's list was empty".into()),
        told = story => told,
    };
    let (total, registry) = told?;

    say("that was all; everyone is stopped");
    bob.stop().await?;
    carol.stop().await?;
    registry.stop().await?;
    println!("  {total}");
    match total.failures.first() {
        Some(first) => Err(format!("{} calls failed; the first: {first}", total.failures.len()).into()),
        None => Ok(()),
    }
}

fn say(step: &str) {
    println!("\n{step}");
}

/// Prints who got which share, and compares it with the weights.
fn shares(tally: &Tally, weights: &[(&str, u32)]) -> Outcome {
    println!("  {tally}");
    let all: u32 = weights.iter().map(|(_, weight)| weight).sum();
    let strangers = tally.answers.keys().filter(|who| weights.iter().all(|(name, _)| name != who));
    let expected = weights.iter().map(|(name, weight)| (*name, 100.0 * f64::from(*weight) / f64::from(all)));
    for (name, expected) in expected.chain(strangers.map(|who| (who.as_str(), 0.0))) {
        let share = tally.share(name);
        if (share - expected).abs() > TOLERANCE {
            return Err(format!("{name} got {share:.1}% of the calls instead of {expected:.1}%").into());
        }
    }
    Ok(())
}

/// The instance's weight, if it is registered.
fn weight(now: &Snapshot, id: &str) -> Option<u32> {
    now.instance(id).filter(|found| found.standing != Standing::Removed).map(|found| found.instance.weight)
}

/// Sets an operator's weight, or takes it back.
fn weigh(id: &str, weight: Option<u32>) -> SetOverrideRequest {
    let action = match weight {
        Some(_) => Action::Set(Override { weight, ..Override::default() }),
        None => Action::Clear(ClearOverride {}),
    };
    SetOverrideRequest {
        key: Some(ServiceKey { namespace: String::new(), service: "greeter".to_owned() }),
        id: id.to_owned(),
        action: Some(action),
        actor: "demo".to_owned(),
        reason: "to show it".to_owned(),
    }
}
