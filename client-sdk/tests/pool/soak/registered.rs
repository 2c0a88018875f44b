//! The pool of registered instances: the view changes, instances break, callers go.

use std::{collections::HashSet, sync::Arc, time::Duration};

use client_sdk::{
    layer::{LoadBalancedError, Standing},
    members::Aperture,
    model::{Endpoint, InstanceBuilder, Status},
    pool::{RegistryPool, registry_pool},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tower::Service as _;

use super::{CALLERS, Ended, ROUNDS, all, number, patience, requests};
use crate::{
    hosts::{Fleet, Host, Makes, Req, Served, World, all_wait},
    kit::{MILLI, seeded},
};

type Pool = RegistryPool<Served, Req, String>;

const HOSTS: usize = 14;
const MIN: usize = 2;
const MAX: usize = 10;
/// How many requests a host takes at once.
const PLACES: usize = 4;

#[tokio::test(start_paused = true)]
async fn after_many_requests_failures_and_cancellations_the_counts_are_what_they_should_be() {
    let (each, requests) = requests(60_000);
    let world = World::default();
    let hosts: Vec<_> = (0..HOSTS).map(|n| world.host(&format!("host-{n}"))).collect();
    for host in &hosts {
        host.at_once(PLACES);
    }
    let fleet = Fleet::of(hosts.iter().map(Host::instance));
    let aperture = Aperture::builder().min(MIN).max(MAX).target(PLACES).smoothing(200 * MILLI);
    let aperture = aperture.idle_time(400 * MILLI).cool_down(400 * MILLI).build().unwrap();
    let pool: Pool = registry_pool(Arc::new(fleet.clone()), Endpoint::new("greeter"), aperture)
        .backoff(5 * MILLI, 50 * MILLI)
        .make_timeout(200 * MILLI)
        .runtime(seeded(7))
        .service(world);
    let mut ended = Ended::default();
    for round in 0..ROUNDS {
        let (enough, told) = watch::channel(false);
        let weather = tokio::spawn(weather(fleet.clone(), hosts.clone(), round as u64, told));
        let callers =
            (0..CALLERS).map(|nth| tokio::spawn(caller(pool.clone(), (round * CALLERS + nth) as u64, each)));
        ended = ended + all(callers).await;
        enough.send_replace(true);
        weather.await.expect("nobody that is not in the view was asked");
        all_wait().await;
        // The aperture may have shrunk a moment ago, and what it drained is about to go.
        let gone = pool.wait_until(|now| now.instances.len() == HOSTS);
        let seen = timeout(100 * MILLI, gone).await.expect("those that left have gone");
        assert!(seen.waiting == 0 && seen.instances.iter().all(|it| it.in_flight == 0), "{seen:?}");
        assert!(hosts.iter().all(|host| host.alive() <= 1), "a service for each, at most");
        // Nobody wants anything: it shrinks.
        sleep(Duration::from_mins(1)).await;
    }
    ended.check(requests);
    let calls: usize = hosts.iter().map(Host::calls).sum();
    assert!(calls >= ended.answered + ended.failed && calls <= requests, "at most once: {calls}");
    let begun: Vec<_> = hosts.iter().flat_map(Host::numbered).collect();
    assert_eq!(begun.len(), calls);
    assert_eq!(begun.into_iter().collect::<HashSet<_>>().len(), calls, "none was begun twice");
    let made: usize = hosts.iter().map(Host::made).sum();
    assert!(
        made > 100 && hosts.iter().all(|host| host.calls() > 0),
        "there was something to get wrong: {made}"
    );

    sleep(Duration::from_hours(1)).await;
    let seen = pool.snapshot();
    let aperture = seen.aperture.clone().expect("set");
    assert_eq!((aperture.size, seen.chosen(), aperture.available), (MIN, MIN, HOSTS), "{aperture:?}");
    assert!(aperture.estimate < 1e-6, "no demand is left behind: {aperture:?}");
    assert!(aperture.grown > 10 && aperture.shrunk > 10, "{aperture:?}");
    assert!(
        seen.instances.iter().all(|it| it.standing != Standing::Removed && it.in_flight == 0),
        "{seen:?}"
    );
    assert_eq!(hosts.iter().map(Host::alive).sum::<usize>(), MIN, "made − dropped = alive");
    // It serves as many as ever: all that two take at once, and with one more it waits.
    let held: Vec<_> = (0..=MIN * PLACES).map(|_| tokio::spawn(pool.clone().call("hold"))).collect();
    // Before it has grown.
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
    assert_eq!(pool.snapshot().waiting, 1, "{:?}", pool.snapshot());
    for host in &hosts {
        host.open(MIN * PLACES + 1);
    }
    for call in held {
        call.await.unwrap().expect("served");
    }
    drop(pool);
    all_wait().await;
    for host in &hosts {
        assert_eq!((host.alive(), host.places()), (0, Some(PLACES)), "nothing is held back");
    }
    println!("registered: {ended:?} made {made} {aperture:?}");
}

/// What an instance is in the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Out,
    Takes { weight: u32 },
    Refuses(Status),
}

impl Place {
    fn any(rng: &mut fastrand::Rng) -> Self {
        match rng.u32(..10) {
            0..2 => Self::Out,
            2 => Self::Refuses(Status::Draining),
            3 => Self::Refuses(Status::Down),
            4 => Self::Takes { weight: 0 },
            _ => Self::Takes { weight: rng.u32(1..5) },
        }
    }

    fn instance(self, host: &Host) -> Option<InstanceBuilder> {
        match self {
            Self::Out => None,
            Self::Takes { weight } => Some(host.instance().weight(weight)),
            Self::Refuses(status) => Some(host.instance().status(status)),
        }
    }

    fn takes_requests(self) -> bool {
        matches!(self, Self::Takes { weight } if weight > 0)
    }
}

/// Instances come, go, drain and change their weights, cannot be connected for a moment, fail, and break; the registry is away at
/// times. None gets a request that is not to get any. In the end all is well again.
async fn weather(fleet: Fleet, hosts: Vec<Host>, seed: u64, told: watch::Receiver<bool>) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut places = vec![Place::Takes { weight: 1 }; HOSTS];
    let show = |places: &[Place]| {
        fleet.set(
            hosts.iter().zip(places).filter_map(|(host, place)| place.instance(host)).collect::<Vec<_>>(),
        );
    };
    while !*told.borrow() {
        for _ in 0..rng.usize(1..4) {
            places[rng.usize(..HOSTS)] = Place::any(&mut rng);
        }
        // Once in a while there is nobody at all.
        let nobody = rng.u32(..100) == 0;
        if nobody {
            places.fill(Place::Out);
        }
        show(&places);
        let host = &hosts[rng.usize(..HOSTS)];
        match rng.u32(..10) {
            0 => host.makes(Makes::Errors),
            1 => host.makes(Makes::Nothing),
            2 => host.fails(true),
            3..6 => host.doom("connection reset"),
            6 => fleet.fail("the registry is away"),
            _ => {}
        }
        // The pool takes the view in as soon as it runs.
        sleep(MILLI).await;
        let out = || hosts.iter().zip(&places).filter(|(_, place)| !place.takes_requests());
        let before: Vec<_> = out().map(|(host, _)| host.calls()).collect();
        sleep(rng.u32(5..60) * MILLI).await;
        let after: Vec<_> = out().map(|(host, _)| host.calls()).collect();
        assert_eq!(before, after, "{places:?}");
        host.makes(Makes::Services);
        host.fails(false);
        if nobody {
            places.fill(Place::Takes { weight: 1 });
        }
    }
    places.fill(Place::Takes { weight: 1 });
    show(&places);
}

/// So many requests, each begun when the one before has ended, with all that may go wrong.
async fn caller(mut pool: Pool, seed: u64, requests: usize) -> Ended {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut ended = Ended::default();
    for nth in 0..requests {
        let ask = match rng.u32(..100) {
            0..30 => "",
            30..95 => "10ms",
            _ => "10ms fail",
        };
        // The services heed no such word, but remember it.
        let ask = format!("#{} {ask}", number(seed, nth, requests)).leak();
        let came = match timeout(patience(&mut rng), pool.call(ask)).await {
            Ok(Ok(_)) => Ended::ANSWERED,
            Ok(Err(LoadBalancedError::Service { .. })) => Ended::FAILED,
            Ok(Err(LoadBalancedError::Route(_))) => {
                // Nobody asks again at once.
                sleep(10 * MILLI).await;
                Ended::UNSERVED
            }
            Ok(Err(other)) => panic!("{other}"),
            Err(_) => Ended::GIVEN_UP,
        };
        ended = ended + came;
    }
    ended
}
