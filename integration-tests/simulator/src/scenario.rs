//! Which fleets there are, and what happens to them when.

use std::time::Duration;

use client_sdk::model::Status;

use crate::{
    fleet::ZONES,
    server::{Behaviour, WORK, WORKERS},
};

/// How many servers a fleet has.
pub const SERVERS: usize = 20;
/// When what is to go wrong does.
pub const ONSET: Duration = Duration::from_secs(10);
/// How long a keepalive takes to notice that a peer is silent.
pub const KEEPALIVE: Duration = Duration::from_secs(5);

/// A fleet and its fate.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What it is called in tables.
    pub name: &'static str,
    /// How many servers there are, and how many of these are registered at first.
    pub servers: usize,
    /// The first so many.
    pub registered: usize,
    /// Requests per second.
    pub load: f64,
    /// How long requests arrive.
    pub length: Duration,
    /// What happens when, in order.
    pub events: Vec<(Duration, Event)>,
    /// Who is not to get requests, and from when on.
    pub bad: Option<(Vec<usize>, Duration)>,
    /// The share of requests that have one and the same key; the others have each their own.
    pub hot: f64,
}

/// What happens.
#[derive(Clone, Debug)]
pub enum Event {
    /// Servers behave so from now on.
    Behave(Vec<usize>, Behaviour),
    /// Connections to servers break.
    Break(Vec<usize>),
    /// A server is registered with this status.
    Register(usize, Status),
    /// A server is deregistered.
    Deregister(usize),
}

/// Requests per second that so many servers answer when all their workers are always busy.
#[must_use]
#[allow(clippy::cast_precision_loss)] // few
pub fn capacity(servers: usize) -> f64 {
    (servers * WORKERS) as f64 / WORK.as_secs_f64()
}

/// All of them, at least so long each.
#[must_use]
pub fn all(length: Duration) -> Vec<Scenario> {
    vec![
        skewed(length),
        fails(length),
        fails_fast(length),
        stalls(length),
        cold_start(length),
        rolling_restart(length),
        zone_cut(length),
        hot_key(length),
    ]
}

/// Two of twenty are four times slower than the others, from the start. Load is 70 % of what all can do.
#[must_use]
pub fn skewed(length: Duration) -> Scenario {
    Scenario {
        load: 0.7 * (capacity(SERVERS - 2) + capacity(2) / 4.0),
        events: vec![(Duration::ZERO, Event::Behave(vec![0, 1], Behaviour::Slow(4.0)))],
        ..well("two of twenty four times slower", length)
    }
}

/// One does the work and fails.
#[must_use]
pub fn fails(length: Duration) -> Scenario {
    turns_bad("one fails", Behaviour::Fails, length)
}

/// One fails at once.
#[must_use]
pub fn fails_fast(length: Duration) -> Scenario {
    turns_bad("one fails fast", Behaviour::FailsFast, length)
}

/// One stands still for a second in ten.
#[must_use]
pub fn stalls(length: Duration) -> Scenario {
    let stalls = Behaviour::Stalls { every: Duration::from_secs(10), lasts: Duration::from_secs(1) };
    Scenario {
        events: vec![(Duration::ZERO, Event::Behave(vec![0], stalls))],
        ..well("one stalls a second at a time", length)
    }
}

/// A new one takes ten times as long at first, and is warm after twenty seconds.
#[must_use]
pub fn cold_start(length: Duration) -> Scenario {
    let new = SERVERS - 1;
    let cold = Behaviour::Cold { factor: 10.0, within: Duration::from_secs(20) };
    Scenario {
        registered: new,
        events: vec![(ONSET, Event::Behave(vec![new], cold)), (ONSET, Event::Register(new, Status::Up))],
        ..well("a cold start", length)
    }
}

/// All are restarted, one after the other: drained, gone, and back.
#[must_use]
pub fn rolling_restart(length: Duration) -> Scenario {
    let mut events = Vec::new();
    let mut at = Duration::from_secs(2);
    let step = Duration::from_millis(500);
    for number in 0..SERVERS {
        events.push((at, Event::Register(number, Status::Draining)));
        events.push((at + step, Event::Deregister(number)));
        events.push((at + step, Event::Behave(vec![number], Behaviour::Down)));
        events.push((at + 2 * step, Event::Behave(vec![number], Behaviour::Well)));
        events.push((at + 2 * step, Event::Register(number, Status::Up)));
        at += 3 * step;
    }
    let length = length.max(at + Duration::from_secs(2));
    Scenario { events, ..well("a rolling restart", length) }
}

/// A third, all of one zone, falls silent for half a minute. Load is half of what all can do, so that the others can take it.
#[must_use]
pub fn zone_cut(length: Duration) -> Scenario {
    let cut: Vec<_> = (0..SERVERS).filter(|number| number % ZONES.len() == 0).collect();
    let back = ONSET + Duration::from_secs(30);
    Scenario {
        load: 0.5 * capacity(SERVERS),
        events: vec![
            (ONSET, Event::Behave(cut.clone(), Behaviour::CutOff)),
            (ONSET + KEEPALIVE, Event::Break(cut.clone())),
            (back, Event::Behave(cut.clone(), Behaviour::Well)),
        ],
        bad: Some((cut, ONSET + KEEPALIVE)),
        length: length.max(back + Duration::from_secs(10)),
        ..well("a zone is cut off", length)
    }
}

/// A fifth of all requests have the same key: twice what one server can do. Load is half of what all can do.
#[must_use]
pub fn hot_key(length: Duration) -> Scenario {
    Scenario { load: 0.5 * capacity(SERVERS), hot: 0.2, ..well("a hot key", length) }
}

/// All are well. Load is 70 % of what all can do.
#[must_use]
pub fn well(name: &'static str, length: Duration) -> Scenario {
    Scenario {
        name,
        servers: SERVERS,
        registered: SERVERS,
        load: 0.7 * capacity(SERVERS),
        length,
        events: Vec::new(),
        bad: None,
        hot: 0.0,
    }
}

fn turns_bad(name: &'static str, behaviour: Behaviour, length: Duration) -> Scenario {
    Scenario {
        events: vec![(ONSET, Event::Behave(vec![0], behaviour))],
        bad: Some((vec![0], ONSET)),
        length: length.max(ONSET * 2),
        ..well(name, length)
    }
}
