//! Each validator bites: a history that was recorded on a floor keeps every promise; with one bug planted into a copy of
//! it, the right validator says the broken promise's name.

use std::{collections::HashMap, sync::Arc};

use integration_tests::{
    floors,
    history::{Answer, Ask, Asked, Commit, Event, History, Item, Millis, Name, Placed, Stamp, Told},
    validate::{self as judge, Promise, Validator},
};
use registry_proto::v1::ResetReason;
use registry_server::core::Cause;

/// Seeds that are looked through for a place where the bug fits.
const SEEDS: u64 = 60;

/// Where a history comes from.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum From {
    Core,
    Writer,
}

struct Bug {
    promise: Promise,
    what: &'static str,
    from: From,
    judge: Validator,
    /// False: there is no place for it in this history.
    plant: fn(&mut History) -> bool,
}

#[test]
fn a_planted_bug_is_found_by_the_promise_that_it_breaks() {
    let mut recorded: HashMap<(From, u64), History> = HashMap::new();
    let mut toothless = Vec::new();
    for Bug { promise, what, from, judge, plant } in &BUGS {
        let bitten = (0..SEEDS).find_map(|seed| {
            let history = recorded.entry((*from, seed)).or_insert_with(|| match from {
                From::Core => floors::record_core(seed).history,
                From::Writer => floors::record_writer(seed).history,
            });
            let mut doctored = history.clone();
            plant(&mut doctored).then(|| (seed, judge(history), judge(&doctored)))
        });
        match bitten {
            None => toothless.push(format!("{promise}: no seed has a place for {what}")),
            Some((seed, Err(broken), _)) => {
                toothless.push(format!("{promise}: seed {seed} breaks it: {broken}"));
            }
            Some((seed, _, Ok(()))) => toothless.push(format!("{promise}: seed {seed} with {what} passes")),
            Some((seed, _, Err(broken))) => {
                let named =
                    broken.promise == *promise && broken.to_string().starts_with(&promise.to_string());
                if !named {
                    toothless.push(format!("{promise}: seed {seed} with {what} is said to be {broken}"));
                }
            }
        }
    }
    assert!(toothless.is_empty(), "{}", toothless.join("\n"));
}

#[test]
fn every_promise_of_the_server_has_a_bug_that_it_bites_on() {
    use Promise::{D1, D2, D3, D4, L1, L2, L3, L4, L5, W1, W2, W3, W4, W5, W6, W7, W8, W9, W10};
    for promise in [W1, W2, W3, W4, W5, W6, W7, W8, W9, W10, D1, D2, D3, D4, L1, L2, L3, L4, L5] {
        assert!(BUGS.iter().any(|bug| bug.promise == promise), "nothing is planted for {promise}");
    }
}

macro_rules! bugs {
    ($($promise:ident $judge:ident $from:ident $what:literal $plant:expr;)*) => {
        [$(Bug {
            promise: Promise::$promise,
            what: $what,
            from: From::$from,
            judge: judge::$judge,
            plant: $plant,
        }),*]
    };
}

const BUGS: [Bug; 39] = bugs! {
    W1 w1_ordered Core "a revision that goes back" |it| deltas(it, |first, second| {
        second.revision = first.revision - 1;
        true
    });
    W2 w2_gapless Core "a message that was lost" |it| streams(it, |events, at| {
        let lost = delta(&events[at]).is_some_and(|told| !told.put.is_empty());
        let missed = lost && delta(&events[at + 1]).is_some();
        if missed {
            events.remove(at);
        }
        missed
    });
    W2 w2_gapless Writer "an instance that was left out" |it| told(it, |told| told.put.pop().is_some());
    W3 w3_unique Core "a message that came twice" |it| streams(it, |events, at| {
        let again = delta(&events[at]).is_some();
        if again {
            events.insert(at + 1, events[at].clone());
        }
        again
    });
    W4 w4_atomic Core "a half of a revision" |it| told(it, |told| {
        let twice = |pair: &[Arc<Item>]| pair[0].mod_revision == pair[1].mod_revision;
        !told.snapshot && told.put.len() == 2 && told.put.windows(2).any(twice) && told.put.pop().is_some()
    });
    W5 w5_resumable Core "a snapshot without a reason" |it| told(it, |told| {
        told.snapshot && { told.reason = ResetReason::Unspecified; true }
    });
    W5 w5_resumable Core "a snapshot that nobody needed" needless_snapshot;
    W6 w6_coalesced Core "a coalesced delta that lacks a part" |it| {
        let commits = it.commits.clone();
        services(it, |service, told| {
            let missed = commits.iter().filter(|commit| {
                commit.epoch == told.epoch
                    && (told.previous + 1..=told.revision).contains(&commit.revision)
                    && commit.changes.iter().any(|it| *it.name.0 == *service)
            });
            !told.snapshot && missed.count() > 2 && told.put.pop().is_some()
        })
    };
    W7 w7_true_bookmarks Core "a bookmark that came too early" early_bookmark;
    W7 w7_true_bookmarks Writer "a bookmark that came too early" early_bookmark;
    W8 w8_self_verifying Core "another digest" |it| told(it, |told| { told.digest += 1; true });
    W8 w8_self_verifying Writer "another digest of a reading" |it| it.readings.first_mut().is_some_and(|reading| {
        reading.digest += 1;
        true
    });
    W9 w9_empty_safe Core "an empty snapshot" |it| told(it, |told| {
        let emptied = told.snapshot && !told.put.is_empty();
        told.put.retain(|_| !emptied);
        emptied
    });
    W9 w9_empty_safe Writer "a service that is said not to exist" |it| told(it, |told| {
        std::mem::take(&mut told.exists)
    });
    W9 w9_empty_safe Core "a wrong number of instances" |it| told(it, |told| {
        told.service_instances += 40;
        true
    });
    W10 w10_bounded Core "a log beyond its bound" |it| {
        let most = it.rules.log.map_or(0, |(entries, _)| entries);
        it.gauges.first_mut().is_some_and(|gauge| { gauge.log_entries = most + 1; true })
    };
    W10 w10_bounded Core "a snapshot that a slow reader pins" |it| {
        it.gauges.first_mut().is_some_and(|gauge| { gauge.snapshots = 3; true })
    };
    W10 w10_bounded Writer "a queue of marks" |it| {
        it.gauges.first_mut().is_some_and(|gauge| { gauge.marks = gauge.watchers + 1; true })
    };
    D1 d1_durable Core "a revision that a crash lost" lose_a_revision;
    D1 d1_durable Writer "a revision that a power loss lost" lose_a_revision;
    D1 d1_durable Writer "an instance that a restart lost" |it| {
        let first = it.runs.len();
        it.readings.iter_mut().rev().any(|reading| {
            let old = reading.items.values().find(|item| item.value.is_some()).cloned();
            let committed = |revision| it.commits.iter().find(|commit| commit.revision == revision);
            let from_before = |item: &Arc<Item>| {
                committed(item.mod_revision).is_some_and(|commit| commit.run < reading.run)
            };
            let lost = first > 1 && old.as_ref().is_some_and(from_before);
            if let Some(old) = old.filter(|_| lost) {
                reading.items.remove(&old.id);
            }
            lost
        })
    };
    D2 d2_read_your_writes Core "a reading from before the answer" |it| {
        let done = |it: &Asked| matches!(it.answer, Some((_, _, Answer::Done(_))));
        let Some(answered) = it.asked.iter().find(|asked| done(asked)).cloned() else { return false };
        let Some((stamp, _, Answer::Done(revision))) = answered.answer else { return false };
        it.readings.iter_mut().find(|it| it.run == answered.run && it.started > stamp).is_some_and(|reading| {
            reading.revision = revision - 1;
            true
        })
    };
    D2 d2_read_your_writes Writer "watches that do not show what was answered" |it| {
        for event in it.watchers.iter_mut().flat_map(|record| &mut record.events) {
            if let Event::Bookmark(bookmark) = event {
                bookmark.revision = 0;
            }
        }
        true
    };
    D3 d3_all_or_nothing Core "a command in two revisions" |it| {
        let more = |commit: &Commit| commit.cause == Cause::Register && commit.changes.len() == 2;
        let both = |commit: &Commit| commit.changes[0].after.as_ref().and_then(|it| it.item.value)
            == commit.changes[1].after.as_ref().and_then(|it| it.item.value);
        let Some(at) = it.commits.iter().position(|it| more(it) && both(it)) else { return false };
        let mut second = it.commits[at].clone();
        it.commits[at].changes.pop();
        second.changes.remove(0);
        second.revision += 1;
        it.commits.insert(at + 1, second);
        true
    };
    D3 d3_all_or_nothing Writer "a refused command that was done" |it| {
        let numbers: Vec<u64> = it.commits.iter().filter_map(|commit| {
            commit.actor.strip_prefix("op").and_then(|number| number.parse().ok())
        }).collect();
        it.asked.iter_mut().find(|asked| numbers.contains(&asked.number)).is_some_and(|asked| {
            asked.answer.as_mut().is_some_and(|answer| { answer.2 = Answer::Refused; true })
        })
    };
    D4 d4_fail_stop Writer "a store that was asked again" |it| failed(it, |it, run| {
        it.runs[run].asked_after_failure = 1;
        true
    });
    D4 d4_fail_stop Writer "a write that was taken" |it| failed(it, |it, run| {
        let (number, failed) = (it.runs[run].number, it.runs[run].failed.map_or(0, |failed| failed.0));
        let later = |asked: &&mut Asked| {
            asked.run == number && asked.sent.0 > failed && !matches!(asked.ask, Ask::Renew(_))
        };
        let answered = it.asked.iter_mut().filter(later).find_map(|asked| asked.answer.as_mut());
        answered.is_some_and(|answer| { answer.2 = Answer::Done(1); true })
    });
    D4 d4_fail_stop Writer "health that says nothing" |it| failed(it, |it, run| {
        it.runs[run].said_failed = false;
        true
    });
    L1 l1_no_early_expiry Core "an expiry just after a renewal" early_expiry;
    L1 l1_no_early_expiry Writer "an expiry just after a renewal" early_expiry;
    L1 l1_no_early_expiry Writer "a renewal that waits for the disk" |it| {
        let mut renewals = it.asked.iter_mut().filter(|asked| matches!(asked.ask, Ask::Renew(_)));
        renewals.find_map(|asked| asked.answer.as_mut()).is_some_and(|answer| {
            answer.1 += 5;
            true
        })
    };
    L2 l2_prompt_expiry Core "an expiry that never came" |it| {
        let last = it.commits.last().map_or(0, |commit| commit.at);
        let fits = it.commits.iter().position(|commit| {
            // Nothing else happens to what was to go until it is overdue.
            let soon = |at: Millis| at >= commit.decided && at < commit.at + 3_000;
            let gone = |name: &Name| commit.changes.iter().any(|it| it.name == *name);
            let again = |other: &Commit| {
                other.revision != commit.revision
                    && soon(other.at)
                    && other.changes.iter().any(|changed| gone(&changed.name))
            };
            commit.cause == Cause::Expire
                && !commit.changes.is_empty()
                && commit.at + 3_000 < last
                && !it.commits.iter().any(again)
                && !it.runs.iter().any(|run| soon(run.began.1))
                && !it.stalls.iter().any(|stall| soon(stall.until))
        });
        fits.is_some_and(|at| { it.commits.remove(at); true })
    };
    L2 l2_prompt_expiry Writer "a lease that ended in pieces" |it| {
        let pieces = |commit: &&mut Commit| {
            let lease = |at: usize| commit.changes[at].before.as_ref().map(|it| it.lease);
            commit.cause == Cause::Expire && commit.changes.len() > 1 && lease(0) == lease(1)
        };
        it.commits.iter_mut().find(pieces).is_some_and(|commit| { commit.changes.remove(1); true })
    };
    L3 l3_fenced Core "a removal of another incarnation" |it| {
        let done: Vec<String> = it.commits.iter().map(|commit| commit.actor.to_string()).collect();
        it.asked.iter_mut().any(|asked| {
            let Ask::Deregister { names, .. } = &mut asked.ask else { return false };
            let acted = done.contains(&format!("op{}", asked.number)) && names.len() == 1;
            acted && { names[0].1 += 1_000; true }
        })
    };
    L3 l3_fenced Core "a registration by an older generation" |it| {
        let register = |number: u64| it.asked.iter().find_map(|asked| match &asked.ask {
            Ask::Register { grant, .. } if asked.number == number => Some(grant.clone()),
            _ => None,
        });
        let planted = it.commits.iter().enumerate().find_map(|(at, commit)| {
            let number = commit.changes.iter().find_map(|it| it.after.as_ref()?.item.value)?;
            let grant = register(number).filter(|_| commit.cause == Cause::Register)?;
            let others = it.commits[..at].iter().enumerate().filter(|(_, it)| it.epoch == commit.epoch);
            others.rev().find_map(|(earlier, other)| {
                let place = other.granted.iter().position(|it| it.uid == grant.uid && it.lease != grant.lease)?;
                let lease = other.granted[place].lease;
                let changed = |it: &Commit| {
                    it.ended.contains(&lease) || it.granted.iter().any(|it| it.lease == lease)
                };
                (!it.commits[earlier + 1..at].iter().any(changed)).then_some((earlier, place))
            })
        });
        planted.is_some_and(|(at, place)| { it.commits[at].granted[place].generation = 9; true })
    };
    L4 l4_overrides_last Core "an override that does not show" |it| {
        placed(it, |commit, placed| {
            let laid = commit.overrides.iter().any(|(name, laid)| {
                name.1 == placed.item.id && laid.as_ref().is_some_and(|laid| laid.weight.is_some())
            });
            laid && { change(placed, |item| item.weight += 1); true }
        })
    };
    L4 l4_overrides_last Core "an override that ended too early" |it| {
        let ends = it.commits.iter_mut().find(|commit| commit.cause == Cause::OverrideExpire);
        ends.is_some_and(|commit| { commit.decided = 0; true })
    };
    L5 l5_blast_radius Core "too many that expired" |it| {
        let holds = |commit: &&mut Commit| {
            commit.cause == Cause::Expire && commit.changes.iter().any(|it| it.after.is_some())
        };
        it.commits.iter_mut().find(holds).is_some_and(|commit| {
            for changed in &mut commit.changes {
                changed.after = None;
            }
            true
        })
    };
    L5 l5_blast_radius Core "a hold without a reason" |it| {
        placed(it, |_, placed| {
            let held = placed.item.held.is_some();
            held && { change(placed, |item| item.held = Some(String::new())); true }
        })
    };
};

/// Changes the first thing told, of any watcher, for which `plant` does something.
fn told(history: &mut History, mut plant: impl FnMut(&mut Told) -> bool) -> bool {
    services(history, |_, told| plant(told))
}

fn services(history: &mut History, mut plant: impl FnMut(&str, &mut Told) -> bool) -> bool {
    history.watchers.iter_mut().any(|record| {
        record.events.iter_mut().any(|event| match event {
            Event::Told(told) => plant(&record.service, told),
            _ => false,
        })
    })
}

/// The same, with a watcher's events and a place among them that is not the last.
fn streams(history: &mut History, mut plant: impl FnMut(&mut Vec<Event>, usize) -> bool) -> bool {
    history
        .watchers
        .iter_mut()
        .any(|record| (0..record.events.len().saturating_sub(1)).any(|at| plant(&mut record.events, at)))
}

/// The same, with two deltas that came one after the other.
fn deltas(history: &mut History, mut plant: impl FnMut(&Told, &mut Told) -> bool) -> bool {
    streams(history, |events, at| {
        let (before, after) = events.split_at_mut(at + 1);
        match (delta(&before[at]).cloned(), &mut after[0]) {
            (Some(first), Event::Told(second)) if !second.snapshot => plant(&first, second),
            _ => false,
        }
    })
}

fn delta(event: &Event) -> Option<&Told> {
    match event {
        Event::Told(told) if !told.snapshot => Some(told),
        _ => None,
    }
}

/// The same, with what a commit placed.
fn placed(history: &mut History, mut plant: impl FnMut(&Commit, &mut Placed) -> bool) -> bool {
    history.commits.iter_mut().any(|commit| {
        let as_it_was = commit.clone();
        let mut after = commit.changes.iter_mut().filter_map(|changed| changed.after.as_mut());
        after.any(|placed| plant(&as_it_was, placed))
    })
}

fn change(placed: &mut Placed, change: impl FnOnce(&mut Item)) {
    let mut item = (*placed.item).clone();
    change(&mut item);
    placed.item = Arc::new(item);
}

fn failed(history: &mut History, plant: impl FnOnce(&mut History, usize) -> bool) -> bool {
    let run = history.runs.iter().position(|run| run.failed.is_some());
    run.is_some_and(|run| plant(history, run))
}

/// A bookmark and what came before it, the other way round.
fn early_bookmark(history: &mut History) -> bool {
    streams(history, |events, at| {
        let early = delta(&events[at]).is_some_and(|told| !told.put.is_empty())
            && matches!(events[at + 1], Event::Bookmark(_));
        if early {
            events.swap(at, at + 1);
        }
        early
    })
}

/// A resumed stream that begins with a snapshot, although the log has all that it missed.
fn needless_snapshot(history: &mut History) -> bool {
    let Some((10_000.., bytes)) = history.rules.log else { return false };
    if bytes < 64 << 20 || history.rules.forgets || history.runs.len() > 1 {
        return false;
    }
    streams(history, |events, at| {
        let resumed = matches!(&events[at], Event::Opened { cursor: Some(_), forced: false, .. });
        match &mut events[at + 1] {
            Event::Told(told) if resumed && !told.snapshot => {
                told.snapshot = true;
                told.reason = ResetReason::HistoryGone;
                true
            }
            _ => false,
        }
    })
}

fn lose_a_revision(history: &mut History) -> bool {
    let last = history.runs.last_mut();
    last.is_some_and(|run| run.number > 1 && run.found.pop().is_some())
}

/// A renewal is acknowledged a millisecond before a lease expires.
fn early_expiry(history: &mut History) -> bool {
    let expiry = history.commits.iter().find(|it| it.cause == Cause::Expire && it.decided > 20_000);
    let Some((stamp, at, lease)) = expiry.and_then(|commit| {
        let before = commit.changes.first()?.before.as_ref()?;
        Some((commit.stamp, commit.decided - 1, before.lease))
    }) else {
        return false;
    };
    let stamp: Stamp = stamp - 1;
    history.asked.push(Asked {
        number: 1_000_000,
        ask: Ask::Renew(lease),
        run: 1,
        sent: (stamp, at),
        answer: Some((stamp, at, Answer::Renewed)),
    });
    true
}
