//! What is said when the demand changes how many instances are used.

use std::time::Duration;

use client_sdk::members::{Aperture, SizeChange};

use crate::{
    Said,
    hosts::{Fleet, Host, World, ask, builder},
};

#[tokio::test(start_paused = true)]
async fn each_change_is_told_with_the_estimate_that_led_to_it() {
    let said = Said::all();
    let world = World::default();
    let hosts: Vec<Host> = (0..20).map(|n| world.host(&format!("host-{n}"))).collect();
    let fleet = Fleet::of(hosts.iter().map(Host::instance));
    let aperture = Aperture::builder().min(1).build().expect("in range");
    let pool = builder(&fleet).aperture(aperture).service(world.clone());
    let mut changes: Vec<SizeChange> = Vec::new();
    let held: Vec<_> = (0..45).map(|_| ask(&pool, "hold")).collect();
    let size = |size: usize| {
        let pool = pool.clone();
        async move {
            let sized = pool.wait_until(|now| now.aperture.as_ref().is_some_and(|it| it.size == size)).await;
            sized.aperture.and_then(|it| it.last).expect("it changed")
        }
    };
    changes.push(size(5).await);
    for host in &hosts {
        host.open(100);
    }
    for answer in held {
        answer.await.expect("no panic").expect("served");
    }
    for smaller in (1..5).rev() {
        changes.push(size(smaller).await);
    }
    tokio::time::sleep(Duration::from_hours(1)).await;

    let lines = said.lines(&["INFO", "aperture changes"]);
    let SizeChange { to, estimate, .. } = changes[0];
    let grown =
        lines.iter().filter(|line| line.contains(&format!("to={to} available=20 estimate={estimate:?}")));
    assert_eq!(grown.count(), 1, "{changes:?}: {lines:?}");
    for SizeChange { from, to, estimate, .. } in &changes[1..] {
        let told = format!("from={from} to={to} available=20 estimate={estimate:?}");
        assert_eq!(lines.iter().filter(|line| line.contains(&told)).count(), 1, "{told}: {lines:?}");
    }
    let snapshot = pool.snapshot().aperture.expect("set");
    assert_eq!((snapshot.size, snapshot.shrunk), (1, 4));
}
