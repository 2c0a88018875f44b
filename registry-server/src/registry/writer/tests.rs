//! What only the inside of the loop shows.

use tokio::sync::mpsc;

use super::*;
use crate::{
    core::{Settings, State},
    hub::HubSettings,
    store::MemoryStore,
};

#[tokio::test]
async fn a_flood_of_renewals_keeps_neither_a_finished_group_nor_a_stop_out() {
    let (_commands, command_lane) = mpsc::channel(1);
    let (renewals, renewal_lane) = mpsc::channel(1);
    let (stop, stopped) = oneshot::channel();
    let lanes = Lanes { commands: command_lane, renewals: renewal_lane, stopped };
    let hub = Hub::new("e", &State::default(), 0, HubSettings::default());
    let store = Box::new(MemoryStore::new(1));
    let (status, _health) = watch::channel(StoreHealth::Writable);
    let core = Core::new(Settings::default());
    let mut writer = Writer::new((core, Arc::default()), hub, store, Runtime::tokio(), lanes, status);
    renewals.try_send(Renew { leases: Vec::new(), reply: oneshot::channel().0 }).expect("room");

    let (finished, appended) = oneshot::channel();
    assert!(finished.send(append(Box::new(MemoryStore::new(1)), &[])).is_ok());
    writer.in_flight = Some(InFlight { appended, since: 0, records: Arc::default(), members: Vec::new() });
    assert!(matches!(writer.wait(u64::MAX).await, Woke::Appended(Ok(_))));
    writer.in_flight = None;
    stop.send(()).expect("it is waited for");
    assert!(matches!(writer.wait(u64::MAX).await, Woke::Stopped));
    writer.lanes.close();
    assert!(matches!(writer.wait(u64::MAX).await, Woke::Renew(_)), "what was taken is still answered");
    assert!(matches!(writer.wait(u64::MAX).await, Woke::NothingLeft));
}
