//! The README's programs, run as it says, beside a real registry.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use crate::{PATIENCE, RunningRegistry};

const WATCH: &str = "cargo run -p examples --bin watch -- greeter";
const ALICE: &str = "cargo run -p examples --bin greeter -- --name alice --weight 3";
const BOB: &str = "cargo run -p examples --bin greeter -- --name bob";
const CALLER: &str = "cargo run -p examples --bin caller -- --calls 20";
const CUSTOM_DISCOVER: &str = "cargo run -p examples --bin custom_discover";
const CUSTOM_LOAD_BALANCE: &str = "cargo run -p examples --bin custom_load_balance";
const CUSTOM_POLICY: &str = "cargo run -p examples --bin custom_policy";
const APERTURE: &str = "cargo run -p examples --bin aperture";
const AUTOSCALE: &str = "cargo run -p examples --bin autoscale";
const HTTP1: &str = "cargo run -p examples --bin http1";

/// The commands of the README that are run here.
pub(crate) const COMMANDS: [&str; 10] = [
    WATCH,
    ALICE,
    BOB,
    CALLER,
    CUSTOM_DISCOVER,
    CUSTOM_LOAD_BALANCE,
    CUSTOM_POLICY,
    APERTURE,
    AUTOSCALE,
    HTTP1,
];

/// What `cargo run` would start, which cargo has built already for this test.
fn program(command: &str) -> Command {
    let words = command.strip_prefix("cargo run -p examples --bin ").expect("a program");
    let mut words = words.split(' ');
    let program = match words.next().expect("a name") {
        "watch" => env!("CARGO_BIN_EXE_watch"),
        "greeter" => env!("CARGO_BIN_EXE_greeter"),
        "caller" => env!("CARGO_BIN_EXE_caller"),
        "custom_discover" => env!("CARGO_BIN_EXE_custom_discover"),
        "custom_load_balance" => env!("CARGO_BIN_EXE_custom_load_balance"),
        "custom_policy" => env!("CARGO_BIN_EXE_custom_policy"),
        "aperture" => env!("CARGO_BIN_EXE_aperture"),
        "autoscale" => env!("CARGO_BIN_EXE_autoscale"),
        "http1" => env!("CARGO_BIN_EXE_http1"),
        other => panic!("{other} is not a program"),
    };
    let mut command = Command::new(program);
    command.args(words.filter(|word| *word != "--")).kill_on_drop(true);
    command
}

struct Program {
    child: Child,
    said: Lines<BufReader<ChildStdout>>,
}

impl Program {
    fn start(command: &str, registry: &RunningRegistry) -> Self {
        let mut command = program(command);
        command.env("REGISTRY_ENDPOINT", registry.address.as_str()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("started");
        let said = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { child, said }
    }

    /// Reads until a line begins like this and ends like that.
    async fn says(&mut self, begin: &str, end: &str) {
        loop {
            let line = self.said.next_line().await.expect("text");
            let line = line.unwrap_or_else(|| panic!("it ended without saying `{begin}…{end}`"));
            if line.starts_with(begin) && line.ends_with(end) {
                return;
            }
        }
    }

    async fn terminate(&mut self) {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        kill_process(id.expect("it runs"), Signal::TERM).expect("it may be signalled");
        assert!(self.child.wait().await.expect("it ended").success());
    }
}

async fn output(command: &mut Command) -> Vec<String> {
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends").expect("it runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_service_comes_is_called_and_goes() {
    let registry = RunningRegistry::start().await;
    let story = async {
        let mut watch = Program::start(WATCH, &registry);
        watch.says("= default/greeter: 0 instances", "").await;
        let mut alice = Program::start(ALICE, &registry);
        watch.says("+ alice at 127.0.0.1:", ", weight 3, Up").await;
        let mut bob = Program::start(BOB, &registry);
        watch.says("+ bob at 127.0.0.1:", ", weight 1, Up").await;

        let answers = output(program(CALLER).env("REGISTRY_ENDPOINT", registry.address.as_str())).await;
        assert_eq!(answers.len(), 20);
        for (n, answer) in answers.iter().enumerate() {
            assert!(answer.starts_with(&format!("hello caller {}, this is ", n + 1)), "{answer}");
        }

        bob.terminate().await;
        bob.says("bob: draining", "").await;
        bob.says("bob: ended", "").await;
        watch.says("- bob at 127.0.0.1:", "").await;
        alice.terminate().await;
        watch.says("= default/greeter: 0 instances", "").await;
    };
    tokio::time::timeout(PATIENCE, story).await.expect("the story ends");
}

#[tokio::test]
async fn a_discover_of_ones_own() {
    let said = output(&mut program(CUSTOM_DISCOVER)).await;
    let expected = [
        "the file lists alice: alice 100",
        "it lists alice and bob, who has weight 3: alice 25, bob 75",
        "it lists bob: bob 100",
    ];
    assert_eq!(said, expected);
}

#[tokio::test]
async fn a_load_balance_of_ones_own() {
    let said = output(&mut program(CUSTOM_LOAD_BALANCE)).await;
    let expected = [
        "bob is the primary",
        "  hello call 1, this is bob",
        "  hello call 2, this is bob",
        "  hello call 3, this is bob",
        "bob has stopped: alice stands in",
        "  hello call 4, this is alice",
        "  hello call 5, this is alice",
        "  hello call 6, this is alice",
    ];
    assert_eq!(said, expected);
}

#[tokio::test]
async fn a_policy_of_ones_own() {
    let said = output(&mut program(CUSTOM_POLICY)).await;
    let expected = [
        "alice and bob are in zone a, as the caller is; carol is in zone b",
        "  6 calls: alice 3, bob 3",
        "alice and bob have stopped",
        "  6 calls: carol 6",
    ];
    assert_eq!(said, expected);
}

#[tokio::test]
async fn a_channel_that_uses_what_the_demand_asks_for() {
    let said = output(&mut program(APERTURE)).await;
    assert!(
        said[0].starts_with("six greeters are there, and nobody calls: 1 of 6 are connected"),
        "{said:?}"
    );
    let stopped = said.iter().position(|line| line == "they have stopped").expect("said");
    assert!(said[stopped - 1].starts_with("  5 of 6 are connected"), "{said:?}");
    assert!(said.last().is_some_and(|line| line.starts_with("  1 of 6 are connected")), "{said:?}");
}

#[tokio::test]
async fn a_pool_that_starts_and_stops_processes() {
    let said = output(&mut program(AUTOSCALE)).await;
    let mut lines = said.iter();
    for (begin, end) in [
        ("nobody calls", ""),
        ("  1 worker is registered", ""),
        ("8 callers come", ""),
        ("  4 workers are registered", ""),
        ("the callers go", ""),
        ("  ", "calls were answered, and none failed"),
        ("  1 worker is registered", ""),
        ("that was all", ""),
        ("  all ", "processes that were started have ended"),
    ] {
        let told = lines.any(|line| line.starts_with(begin) && line.ends_with(end));
        assert!(told, "`{begin}…{end}` is not said, or not in its turn: {said:?}");
    }
}

#[tokio::test]
async fn any_tower_service_balanced() {
    let said = output(&mut program(HTTP1)).await;
    let expected = [
        "both are connected: 20 requests are answered by alice and bob",
        "alice has stopped: 20 requests are answered by bob",
    ];
    assert_eq!(said, expected);
}
