//! A network that is cut between a part of a fleet and the registry (L5): what may go goes, the rest is held and says why,
//! nobody's calls fail, and all are back by themselves when the network is.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use client_sdk::{discover::Discover, model::Instance};
use integration_tests::{requests::key, server_setup};
use registry_proto::v1;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::kit::{Greeter, SERVICE, channel, discover, greeter, shares, shows, spreads};

const TTL: Duration = Duration::from_secs(2);

/// A network between whoever connects to it and the registry.
struct Network {
    address: SocketAddr,
    cut: watch::Sender<bool>,
}

impl Network {
    async fn to(registry: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (cut, is_cut) = watch::channel(false);
        tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.expect("it listens");
                let mut is_cut = is_cut.clone();
                tokio::spawn(async move {
                    if *is_cut.borrow() {
                        return;
                    }
                    let Ok(mut far) = TcpStream::connect(registry).await else { return };
                    tokio::select! {
                        _ = is_cut.wait_for(|cut| *cut) => {}
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                    }
                });
            }
        });
        Self { address, cut }
    }

    fn cut(&self) {
        self.cut.send_replace(true);
    }

    fn mend(&self) {
        self.cut.send_replace(false);
    }
}

fn held(all: &[Arc<Instance>]) -> usize {
    all.iter().filter(|instance| instance.held).count()
}

#[tokio::test]
async fn l5_a_network_cut_to_half_the_fleet_and_to_more_of_it() {
    let registry = server_setup!().start().await;
    let (reached, half, more) =
        (registry.address(), Network::to(registry.address()).await, Network::to(registry.address()).await);
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let by = [
        reached,
        reached,
        more.address,
        more.address,
        half.address,
        half.address,
        half.address,
        half.address,
    ];
    let mut greeters = Vec::new();
    for (name, by) in names.into_iter().zip(by) {
        greeters.push(Greeter::start_with(name, &[by], |i| i, |r| r.ttl(TTL)).await);
    }
    let discover = discover(&[reached]);
    let channel = channel(&discover);
    let mut view = discover.view(&greeter()).expect("followed");
    let whole = |all: &[Arc<Instance>]| all.len() == names.len() && held(all) == 0;
    spreads(&channel, &names).await;

    // To half of it: as many as may go within a window, so they go, and nobody is held.
    half.cut();
    shows(&mut view, "half of them gone", |all| all.len() == 4 && held(all) == 0).await;
    spreads(&channel, &names[..4]).await;
    assert_eq!(shares(&channel, 40).await.len(), 4, "those that are left are called");
    half.mend();
    shows(&mut view, "all of them back", whole).await;

    // To three quarters of it: half go, what is beyond is held, with the reason.
    half.cut();
    more.cut();
    shows(&mut view, "the guard", |all| all.len() == 4 && held(all) == 2).await;
    registry.logged("instances are held").await;
    let mut client = registry.client().await;
    let summary =
        client.list_services(v1::ListServicesRequest::default()).await.expect("a list").into_inner();
    assert_eq!((summary.services[0].instances, summary.services[0].held), (4, 2));
    assert!(summary.services[0].held_reason.contains("8 instances"), "{summary:?}");
    let request = v1::DiscoverRequest { key: Some(key(SERVICE)), ..v1::DiscoverRequest::default() };
    let found = client.discover(request).await.expect("a reading").into_inner().change.expect("a view").all;
    let reasons: Vec<_> = found.into_iter().filter_map(|instance| Some(instance.held?.reason)).collect();
    assert!(reasons.len() == 2 && reasons.iter().all(|reason| reason.contains("8 instances")), "{reasons:?}");
    // The living are preferred to the held, whose calls would not fail either: only the registry cannot reach them.
    spreads(&channel, &["a", "b"]).await;
    assert_eq!(shares(&channel, 40).await.len(), 2);
    half.mend();
    more.mend();
    shows(&mut view, "all of them back, and nobody held", whole).await;
    spreads(&channel, &names).await;
}
