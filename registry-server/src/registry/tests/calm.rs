//! What the store hears of how much there is to do.

use tokio::time::sleep;

use super::*;

const MANY: usize = 300;

#[tokio::test(start_paused = true)]
async fn the_store_is_told_when_much_is_written_or_runs_out_and_when_that_is_over() {
    let script = Arc::new(Script::default());
    let (registry, _task) = start(&script, false, &simulated());
    sleep(Duration::from_secs(1)).await;
    assert_eq!(script.busy(), Some(false), "a loop that has nothing to do says so, too");
    for id in 0..MANY {
        registry.write(register(id, id as u128, 60_000)).await.expect("written");
    }
    assert_eq!(script.busy(), Some(true), "while it happens");
    sleep(Duration::from_millis(900)).await;
    assert_eq!(script.busy(), Some(true), "it may go on");
    sleep(Duration::from_millis(600)).await;
    assert_eq!(script.busy(), Some(false));
    for id in 0..20 {
        registry.write(register(MANY + id, (MANY + id) as u128, 3_600_000)).await.expect("written");
        sleep(Duration::from_millis(100)).await;
        assert_eq!(script.busy(), Some(false), "few writes are not much");
    }
    // The leases of the first ones run out.
    sleep(Duration::from_millis(56_550)).await;
    assert_eq!(script.busy(), Some(true));
    sleep(Duration::from_secs(2)).await;
    assert_eq!(script.busy(), Some(false));
}
