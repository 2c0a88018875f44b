//! Servers and SDK clients in one simulation: the same seed gives the same history, and the promises hold through crashes,
//! partitions and loss.
#![allow(missing_docs)]

use std::time::Duration;

use integration_tests::sim::{
    Event, Fault, Settings, Simulation, Storage, Trace,
    promises::{
        all_is_well, c1_last_known_good, c2_no_dead_picks, c3_never_deaf, l1_no_early_expiry, w2_gapless,
        w8_nothing_to_resync,
    },
};

const SECOND: Duration = Duration::from_secs(1);

/// A random script on the usual hosts, all promises checked, and quiet at the end.
fn history(seed: u64) -> Vec<(Duration, Event)> {
    let mut simulation = Simulation::new(Settings::new(seed));
    let script = simulation.random_script(6);
    // The longest backoff, and a while of calls.
    let well = script.end() + 20 * SECOND;
    simulation.run(&script, well + 5 * SECOND);
    let trace = simulation.trace();
    c1_last_known_good(trace);
    c2_no_dead_picks(trace);
    c3_never_deaf(trace, simulation.now());
    l1_no_early_expiry(trace);
    w2_gapless(trace);
    w8_nothing_to_resync(trace);
    all_is_well(trace, &simulation.weights(), well);
    trace.events()
}

fn same(one: &[(Duration, Event)], two: &[(Duration, Event)]) {
    for (number, (one, two)) in one.iter().zip(two).enumerate() {
        assert_eq!(one, two, "the histories part at event {number}");
    }
    assert_eq!(one.len(), two.len(), "one history is longer");
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let one = history(1);
    same(&one, &history(1));
    // And the history is more than the script: another seed gives another one from the start.
    let other = history(2);
    assert_ne!(one.iter().take(20).collect::<Vec<_>>(), other.iter().take(20).collect::<Vec<_>>());
}

#[test]
fn promises_hold_whatever_the_seed() {
    for seed in 10..14 {
        history(seed);
    }
}

fn registry() -> String {
    "registry-0".to_owned()
}

/// The watcher sees all, and calls are answered.
fn running(settings: Settings) -> Simulation {
    let (instances, calls) = (settings.instances, settings.callers > 0);
    let mut simulation = Simulation::new(settings);
    simulation.run_until_seen("all instances are seen", 10 * SECOND, |trace| {
        let answered = |_: &Duration, event: &Event| matches!(event, Event::Called { outcome: Ok(_), .. });
        trace.view("watcher-0").is_some_and(|view| view.len() == instances) && (!calls || trace.has(answered))
    });
    simulation
}

/// How many views the watcher got since then.
fn views_since(trace: &Trace, since: Duration) -> usize {
    let watcher = "watcher-0";
    let view = |(at, event): &&(Duration, Event)| {
        *at >= since && matches!(event, Event::View { who, .. } if who == watcher)
    };
    trace.events().iter().filter(view).count()
}

#[test]
fn l1_a_partition_shorter_than_the_ttl_expires_nobody_and_a_longer_one_does() {
    for (lasts, expired) in [(4, false), (40, true)] {
        let mut simulation = running(Settings { callers: 0, ..Settings::new(3) });
        let instance = "instance-1".to_owned();
        let since = simulation.now();
        simulation.apply(&Fault::Partition(instance.clone(), registry()));
        simulation.run_until(since + lasts * SECOND);
        let gone = !simulation.trace().view("watcher-0").expect("seen").contains_key(&instance);
        assert_eq!(gone, expired, "after {lasts} s\n{}", simulation.trace());
        simulation.apply(&Fault::Repair(instance.clone(), registry()));
        simulation.run_until(since + (lasts + 30) * SECOND);
        assert_eq!(
            simulation.trace().view("watcher-0"),
            Some(simulation.weights()),
            "it came back by itself"
        );
        if !expired {
            assert_eq!(views_since(simulation.trace(), since), 0, "{}", simulation.trace());
            l1_no_early_expiry(simulation.trace());
        }
    }
}

#[test]
fn c1_a_registry_that_loses_power_empties_no_view_and_fails_no_call() {
    let mut simulation = running(Settings::new(4));
    let since = simulation.now();
    simulation.apply(&Fault::Crash(registry()));
    // Longer than the TTL: time without a registry counts against nobody.
    simulation.run_until(since + 30 * SECOND);
    assert!(simulation.trace().has(|at, event| *at >= since && matches!(event, Event::Troubled { .. })));
    simulation.apply(&Fault::Start(registry()));
    simulation.run_until(since + 60 * SECOND);
    let trace = simulation.trace();
    assert_eq!(views_since(trace, since), 0, "W5: resumed at the cursor, with nothing new to tell\n{trace}");
    c1_last_known_good(trace);
    c2_no_dead_picks(trace);
    c3_never_deaf(trace, simulation.now());
    all_is_well(trace, &simulation.weights(), since);
    let epochs = trace.events().into_iter().filter_map(|(_, event)| match event {
        Event::Started { epoch, revision, instances, .. } => Some((epoch, revision, instances)),
        _ => None,
    });
    let epochs: Vec<_> = epochs.collect();
    let [(before, 0, 0), (after, 3, 3)] = &epochs[..] else { panic!("{epochs:?}") };
    assert_eq!(before, after, "D1: it is the same history");
    // And it goes on as deltas.
    let now = simulation.now();
    simulation.apply(&Fault::Weight("instance-2".to_owned(), 7));
    simulation.run_until(now + SECOND);
    assert_eq!(views_since(simulation.trace(), now), 1, "{}", simulation.trace());
    assert_eq!(simulation.trace().view("watcher-0"), Some(simulation.weights()));
    w2_gapless(simulation.trace());
    w8_nothing_to_resync(simulation.trace());
}

/// A registry on memory storage forgets everything with its process, and says so by a new epoch. Nobody is told of anything
/// empty, neither while it is away nor when it is back and knows nothing yet; and everyone is registered again within
/// seconds of its return, without help.
#[test]
fn a_registry_that_forgot_everything_is_told_again_by_its_registrants() {
    let mut simulation = running(Settings { storage: Storage::Memory, ..Settings::new(5) });
    let all = simulation.weights();
    simulation.apply(&Fault::Weight("instance-0".to_owned(), 5));
    simulation.run_until_seen("the new weight", SECOND, |trace| trace.view("watcher-0") != Some(all.clone()));
    let since = simulation.now();
    simulation.apply(&Fault::Crash(registry()));
    simulation.run_until(since + 8 * SECOND);
    assert_eq!(views_since(simulation.trace(), since), 0, "{}", simulation.trace());
    all_is_well(simulation.trace(), &simulation.weights(), since);
    let back = simulation.now();
    simulation.apply(&Fault::Start(registry()));
    simulation.run_until(back + 15 * SECOND);
    let well = simulation.now();
    simulation.run_until(well + 5 * SECOND);
    // The weight that was set at run time is among the words that are told again.
    assert_eq!(simulation.weights()["instance-0"], 5);
    all_is_well(simulation.trace(), &simulation.weights(), well);
    c1_last_known_good(simulation.trace());
    c2_no_dead_picks(simulation.trace());
    c3_never_deaf(simulation.trace(), simulation.now());
    w2_gapless(simulation.trace());
    w8_nothing_to_resync(simulation.trace());
    let epochs: std::collections::BTreeSet<String> = simulation
        .trace()
        .events()
        .into_iter()
        .filter_map(|(_, event)| if let Event::Started { epoch, .. } = event { Some(epoch) } else { None })
        .collect();
    assert_eq!(epochs.len(), 2, "memory storage has a new epoch each time: {epochs:?}");
}

#[test]
fn c3_a_silent_registry_is_noticed_within_15_s_and_another_one_takes_over() {
    for seed in 6..10 {
        // Two registries that know the same instances; the weights tell which one a view comes from.
        let settings =
            Settings { registries: 2, storage: Storage::Memory, callers: 0, ..Settings::new(seed) };
        let mut simulation = running(settings);
        simulation.run_until(5 * SECOND);
        let view = simulation.trace().view("watcher-0").expect("seen");
        let of = |view: &integration_tests::sim::trace::Seen| usize::from(view["instance-0"] > 1_000);
        let (used, other) = (of(&view), 1 - of(&view));
        let since = simulation.now();
        simulation.apply(&Fault::Partition("watcher-0".to_owned(), format!("registry-{used}")));
        simulation.run_until(since + SECOND);
        let troubled = |at: &Duration, event: &Event| *at >= since && matches!(event, Event::Troubled { .. });
        assert!(!simulation.trace().has(troubled), "it was cut off, not told\n{}", simulation.trace());
        simulation.run_until(since + 16 * SECOND);
        c3_never_deaf(simulation.trace(), simulation.now());
        let view = simulation.trace().view("watcher-0").expect("seen");
        assert_eq!((of(&view), view.len()), (other, 3), "the other one took over\n{}", simulation.trace());
        c1_last_known_good(simulation.trace());
        w2_gapless(simulation.trace());
        w8_nothing_to_resync(simulation.trace());
    }
}

/// One instance that is gone from the registry and one of weight 0, both of which would still answer.
#[test]
fn c2_who_left_the_view_or_lost_its_weight_is_called_no_more() {
    for seed in 20..22 {
        let mut simulation = running(Settings::new(seed));
        let well = simulation.now();
        simulation.run_until(well + 2 * SECOND);
        all_is_well(simulation.trace(), &simulation.weights(), well);
        simulation.apply(&Fault::Weight("instance-0".to_owned(), 0));
        simulation.apply(&Fault::Partition("instance-1".to_owned(), registry()));
        simulation.run_until(well + 30 * SECOND);
        let trace = simulation.trace();
        let left = [("instance-0".to_owned(), 0), ("instance-2".to_owned(), 1)];
        assert_eq!(trace.view("caller-0"), Some(left.into()), "{trace}");
        c2_no_dead_picks(trace);
        let failed = |at: &Duration, event: &Event| {
            *at >= well && matches!(event, Event::Called { outcome: Err(_), .. })
        };
        assert!(!trace.has(failed), "{trace}");
        // They are asked again as soon as they may be.
        simulation.apply(&Fault::Weight("instance-0".to_owned(), 2));
        simulation.apply(&Fault::Repair("instance-1".to_owned(), registry()));
        let again = simulation.now() + 20 * SECOND;
        simulation.run_until(again + 2 * SECOND);
        all_is_well(simulation.trace(), &simulation.weights(), again);
        c2_no_dead_picks(simulation.trace());
    }
}

/// What no seed reaches: tokio's choice among the branches of a `select!`, its threads for blocking work, and the order of
/// a standard map. The first two are kept out of the systems here; the third shows in the histories above.
#[test]
fn nothing_is_left_to_tokios_own_chance() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut folders = vec![root.join("registry-server/src"), root.join("client-sdk/src")];
    // Signals and the cache file are of the real world.
    let real = ["cli.rs", "main.rs", "runtime.rs", "cache_file.rs", "tests.rs"];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && !real.contains(&name.as_str())
            {
                let text = std::fs::read_to_string(&path).expect("text");
                let path = path.display();
                for (at, _) in text.match_indices("select! {") {
                    seen += 1;
                    let first = text[at..].lines().nth(1).map(str::trim);
                    assert_eq!(first, Some("biased;"), "{path}: a `select!` needs one order");
                }
                assert!(
                    !text.contains("task::spawn_blocking"),
                    "{path}: blocking work goes through the runtime"
                );
            }
        }
    }
    assert!(seen > 10, "where did they go?");
}
