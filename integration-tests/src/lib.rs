//! Whole systems under test. This library is the harness; the tests are in `tests/`.
//!
//! | module | what it owns |
//! |---|---|
//! | [`process`] | real server processes: start, stop, kill, freeze, read their log and their memory |
//! | [`requests`] | short ways to write requests and to read errors |
//! | [`history`] | what was written, answered, read and received, as a record to judge |
//! | [`replica`] | a view put together from what a watcher is told: the acceptance rule and parts, written a second time |
//! | [`stream`] | a `Subscribe` stream by hand |
//! | [`watcher`] | a watcher over `Watch` or `Subscribe` that resumes, and records all that it is told |
//! | [`registrant`] | a registrant that goes on renewing |
//! | [`writers`] | writers whose every effect can be recognised later |
//! | [`validate`] | one validator for each promise, which prints the promise's name when it breaks |
//! | [`floors`] | parts of the server on simulated time, from a seed: the rules alone, the writer's loop on a bad disk; and whole systems |
//! | [`fleet`] | real processes that are called, well or badly behaved, and callers that count |
//! | [`scale`] | the server's rules and hub at a million instances and a hundred thousand watchers: what each thing takes, and the truth |
//! | [`sim`] | whole systems, servers and SDK, on simulated time, network and disks, from a seed |
//!
//! | test | what it shows, on real processes |
//! |---|---|
//! | `crash` | `kill -9` under load: D1, D3, W5, W9 |
//! | `data_directory` | a second server, something in the way, damaged files, no room: D1, D4 and what is said |
//! | `restarts` | rolling the server under 1,000 watchers, within its history and beyond it: W5 |
//! | `fanout` | many watchers, slow ones among them: W2, W6, W10 |
//! | `bounds` | bad input of every kind: its error, and nothing changed |
//! | `large` | 50,000 instances with gRPC's default message limits |
//! | `failing_store` | a store that fails, under a server in the test's process: D4 |
//! | `handover` | SIGTERM: who is told what, what goes on meanwhile, and that the end comes |
//! | `lifecycle` | start, stop, freeze, expiry: D1, L1, L2, L4, L5 |
//! | `wait_applied` | who is waited for until a change is applied, who is asked, and what counts as an answer: C4 |
//! | `protocol` | resuming, selectors, bookmarks, streams of many views: W5, W7, W9 |
//!
//! | test | what it shows, of parts of the server |
//! |---|---|
//! | `floors` | [`floors`] over many seeds: W1–W10, D1–D4, L1–L5 |
//! | `scale` | [`scale`], small: in every case everyone ends with the truth: W2, W4, W5, W8, W10, L1, L2 |
//! | `bites` | with a bug planted into a recorded history, the right validator says the promise's name |
//!
//! | test | what it shows, with the SDK |
//! |---|---|
//! | `simulated` | in [`sim`]: the same seed, the same history; every promise through crashes, partitions, drains and wrong clocks |
//! | `sdk` | on real sockets and processes: C1–C4, L3, L4, W8 as a service and its callers see them |
//! | `rolling_restart` | 20 processes are restarted in turn under load, without a sleep, and no call fails: C4 |
//! | `fleet` | 20 processes that are restarted, killed and go bad under 200 callers: no call fails that a retry can save |
//!
//! Outside of [`fleet`] and [`sim`] nothing here uses the SDK: the reference watcher is written from the protocol alone.

// The harness is where the outside world is real: it may spawn tasks and panic with what it found.
#![allow(clippy::disallowed_methods, clippy::missing_panics_doc)]

pub mod fleet;
pub mod floors;
pub mod history;
pub mod process;
pub mod registrant;
pub mod replica;
pub mod requests;
pub mod scale;
pub mod sim;
pub mod stream;
pub mod validate;
pub mod watcher;
pub mod writers;
