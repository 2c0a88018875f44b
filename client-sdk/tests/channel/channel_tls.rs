//! TLS: each instance proves who it is, and only such are called.

use std::{io, sync::Arc, time::Duration};

use client_sdk::{
    channel::{
        ChannelError, ConnectError, ConnectProblem, ConnectionState, RouteError, SERVER_NAME_TAG, Tls,
    },
    model::{Address, Instance},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::PrivateKeyDer,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    builder,
    h2_server::H2Server,
    kit::{Fleet, Server},
    typed,
};

/// Signs certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("valid");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("randomness");
        Self(CertifiedIssuer::self_signed(params, key).expect("signed"))
    }

    fn roots(&self) -> String {
        self.0.pem()
    }

    /// A certificate for these names, and its key.
    fn issue(&self, names: &[&str]) -> (rcgen::Certificate, KeyPair) {
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let key = KeyPair::generate().expect("randomness");
        let params = CertificateParams::new(names).expect("names");
        (params.signed_by(&key, &self.0).expect("signed"), key)
    }

    fn tls(&self) -> Tls {
        Tls::from_pem(self.roots()).expect("a root")
    }

    /// Who accepts as these names, over these protocols.
    fn acceptor(&self, names: &[&str], alpn: &[&str], clients: Option<&Self>) -> TlsAcceptor {
        let (certificate, key) = self.issue(names);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let config = config.with_safe_default_protocol_versions().expect("versions");
        let config = match clients {
            None => config.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots.add(clients.0.der().clone()).expect("a root");
                let verifier: Arc<dyn ClientCertVerifier> =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .expect("roots");
                config.with_client_cert_verifier(verifier)
            }
        };
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let mut config =
            config.with_single_cert(vec![certificate.der().clone()], key).expect("they belong together");
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }

    /// A server that is who it says, over HTTP/2.
    async fn server(&self, names: &[&str]) -> (H2Server, Address) {
        let server = H2Server::new(None);
        let address = listen(&server, self.acceptor(names, &["h2"], None)).await;
        (server, address)
    }
}

async fn listen(server: &H2Server, acceptor: TlsAcceptor) -> Address {
    server
        .listen_over(move |stream: TcpStream| -> tokio_rustls::Accept<TcpStream> { acceptor.accept(stream) })
        .await
}

async fn check(channel: &client_sdk::BalancedChannel) -> Result<(), tonic::Status> {
    HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.map(|_| ())
}

fn at(address: &Address, id: &'static str) -> client_sdk::model::InstanceBuilder {
    Instance::builder(address.clone()).id(id)
}

/// Calls the one instance, and asserts of why it is not connected.
async fn refused(
    tls: Tls,
    instance: client_sdk::model::InstanceBuilder,
    looks: impl Fn(&ConnectProblem) -> bool,
) -> String {
    let hour = Duration::from_hours(1);
    let channel = builder(&Fleet::of([instance])).tls(tls).backoff(hour, hour).build();
    channel
        .wait_until(|s| s.instances.first().is_some_and(|i| i.state == ConnectionState::TransientFailure))
        .await;
    let status = check(&channel).await.expect_err("not connected");
    let ChannelError::Route(RouteError::AllUnavailable { connected: 0, last: Some(last), .. }) =
        typed(&status)
    else {
        panic!("{status:?}")
    };
    let error: &ConnectError = last.downcast_ref().expect("why it is not connected");
    assert!(looks(error.problem()), "{error}");
    error.to_string()
}

#[tokio::test]
async fn every_instance_proves_that_it_is_who_its_own_name_says() {
    let authority = Authority::new();
    let (a, a_address) = authority.server(&["a.internal"]).await;
    let (b, b_address) = authority.server(&["b.internal"]).await;
    let (c, c_address) = authority.server(&["127.0.0.1"]).await; // without a tag: the address's host
    let fleet = Fleet::of([
        at(&a_address, "a").tag(SERVER_NAME_TAG, "a.internal"),
        at(&b_address, "b").tag(SERVER_NAME_TAG, "b.internal"),
        at(&c_address, "c"),
    ]);
    let channel = builder(&fleet).tls(authority.tls()).build();
    channel.wait_until(|s| s.chosen() == 3).await;
    for _ in 0..6 {
        check(&channel).await.expect("answered");
    }
    for (server, name, address) in
        [(a, "a.internal", a_address), (b, "b.internal", b_address), (c, "127.0.0.1", c_address)]
    {
        let [link] = &server.now()[..] else { panic!("one connection") };
        let port = address.as_str().rsplit_once(':').expect("a port").1.to_owned();
        assert_eq!(link.read, 2);
        for uri in &link.uris {
            assert_eq!(uri.scheme_str(), Some("https"));
            assert_eq!(uri.authority().map(ToString::to_string), Some(format!("{name}:{port}")));
        }
    }
}

#[tokio::test]
async fn one_name_for_all_or_one_by_a_function() {
    let authority = Authority::new();
    let (_, address) = authority.server(&["all.internal", "p.internal"]).await;
    let instance = || at(&address, "a").tag(SERVER_NAME_TAG, "wrong.internal").tag("pod", "p");
    for tls in [
        authority.tls().server_name("all.internal"),
        authority.tls().server_name_by(|i| i.tags.get("pod").map(|pod| format!("{pod}.internal"))),
    ] {
        let channel = builder(&Fleet::of([instance()])).tls(tls).build();
        channel.wait_until(|s| s.chosen() == 1).await;
        check(&channel).await.expect("answered");
    }
}

#[tokio::test]
async fn an_instance_that_is_somebody_else_is_refused_and_the_others_are_used() {
    let authority = Authority::new();
    let (a, a_address) = authority.server(&["a.internal"]).await;
    let (liar, liar_address) = authority.server(&["liar.internal"]).await;
    let is_b = |address| at(address, "b").tag(SERVER_NAME_TAG, "b.internal");
    let fleet = Fleet::of([at(&a_address, "a").tag(SERVER_NAME_TAG, "a.internal"), is_b(&liar_address)]);
    let channel = builder(&fleet).tls(authority.tls()).build();
    let failed = |s: &client_sdk::channel::Snapshot| {
        s.instance("b").is_some_and(|b| b.state == ConnectionState::TransientFailure)
    };
    let snapshot = channel.wait_until(|s| s.chosen() == 1 && failed(s)).await;
    let error = snapshot.instance("b").and_then(|b| b.last_error.clone()).expect("why");
    assert!(error.contains("`b.internal`") && error.contains("certificate"), "{error}");
    for _ in 0..5 {
        check(&channel).await.expect("answered");
    }
    assert_eq!((a.read(), liar.read()), (5, 0));

    refused(
        authority.tls(),
        is_b(&liar_address),
        |problem| matches!(problem, ConnectProblem::Tls { server_name, .. } if server_name == "b.internal"),
    )
    .await;
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let (_, address) = Authority::new().server(&["127.0.0.1"]).await;
    let error = refused(Authority::new().tls(), at(&address, "a"), |problem| {
        matches!(problem, ConnectProblem::Tls { .. })
    })
    .await;
    assert!(error.contains("invalid peer certificate"), "{error}");
}

#[tokio::test]
async fn a_peer_that_does_not_agree_on_http2_is_refused() {
    let authority = Authority::new();
    for alpn in [&[][..], &["http/1.1"]] {
        let server = H2Server::new(None);
        let address = listen(&server, authority.acceptor(&["127.0.0.1"], alpn, None)).await;
        let error = refused(authority.tls(), at(&address, "a"), |problem| {
            matches!(problem, ConnectProblem::NoHttp2 { server_name } if server_name == "127.0.0.1")
        })
        .await;
        assert!(error.contains("`h2`"), "{error}");
        assert_eq!(server.read(), 0);
    }
}

#[tokio::test]
async fn a_peer_that_does_not_speak_tls_is_refused() {
    let server = Server::start("a");
    let error = refused(Authority::new().tls(), server.instance(), |problem| {
        matches!(problem, ConnectProblem::Tls { .. })
    })
    .await;
    assert!(error.contains("does the instance speak TLS"), "{error}");
    assert_eq!(server.calls(), 0);
}

#[tokio::test]
async fn a_peer_that_never_shakes_hands_is_given_up_within_the_connect_timeout() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = silent.local_addr().expect("bound").into();
    let limit = Duration::from_millis(200);
    let channel =
        builder(&Fleet::of([at(&address, "a")])).tls(Authority::new().tls()).connect_timeout(limit).build();
    let snapshot = channel
        .wait_until(|s| s.instance("a").is_some_and(|a| a.state == ConnectionState::TransientFailure))
        .await;
    let error = snapshot.instance("a").and_then(|a| a.last_error.clone()).expect("why");
    assert!(error.contains("no connection within 200 ms"), "{error}");
}

#[tokio::test]
async fn an_instance_without_a_usable_name_is_refused_before_it_is_dialled() {
    let nowhere: Address = "unix:/nowhere/at-all".parse().expect("valid");
    let error = refused(
        Authority::new().tls(),
        at(&nowhere, "a"),
        |problem| matches!(problem, ConnectProblem::NoServerName { instance, .. } if &**instance == "a"),
    )
    .await;
    assert!(error.contains("tls.server-name") && error.contains("`a`"), "{error}");
    let bad = at(&nowhere, "a").tag(SERVER_NAME_TAG, "https://a");
    refused(Authority::new().tls(), bad, |problem| {
        matches!(problem, ConnectProblem::BadServerName { instance, name } if &**instance == "a" && name == "https://a")
    })
    .await;
}

#[tokio::test]
async fn the_client_says_who_it_is_to_servers_that_ask() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let server = H2Server::new(None);
    let acceptor = authority.acceptor(&["127.0.0.1"], &["h2"], Some(&clients));
    let known = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let address = server
        .listen_over({
            let known = Arc::clone(&known);
            move |stream| {
                let (acceptor, known) = (acceptor.clone(), Arc::clone(&known));
                async move {
                    let stream: TlsStream<TcpStream> = acceptor.accept(stream).await?;
                    let chain = stream.get_ref().1.peer_certificates().map_or(0, <[_]>::len);
                    known.fetch_add(chain, std::sync::atomic::Ordering::SeqCst);
                    io::Result::Ok(stream)
                }
            }
        })
        .await;
    let (certificate, key) = clients.issue(&["me"]);
    let tls = Tls::from_pem_with_identity(authority.roots(), certificate.pem(), key.serialize_pem())
        .expect("an identity");
    let channel = builder(&Fleet::of([at(&address, "a")])).tls(tls).build();
    channel.wait_until(|s| s.chosen() == 1).await;
    check(&channel).await.expect("answered");
    assert_eq!(known.load(std::sync::atomic::Ordering::SeqCst), 1);

    // Without: the server says so after its part of the handshake, before its greeting.
    let error = refused(authority.tls(), at(&address, "a"), |problem| {
        matches!(problem, ConnectProblem::NoGreeting(Some(_)))
    })
    .await;
    assert!(error.to_lowercase().contains("certificate"), "{error}");
    assert_eq!(known.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_name_that_changes_reconnects_nothing_and_counts_from_the_next_connection() {
    let authority = Authority::new();
    let (server, address) = authority.server(&["old.internal", "new.internal"]).await;
    let named = |name: &'static str| at(&address, "a").tag(SERVER_NAME_TAG, name);
    let fleet = Fleet::of([named("old.internal")]);
    let channel = builder(&fleet).tls(authority.tls()).wait_for_ready(true).build();
    check(&channel).await.expect("answered");
    fleet.set([named("new.internal")]);
    let tag = |s: &client_sdk::channel::Snapshot| {
        s.instance("a").and_then(|a| a.instance.tags.get(SERVER_NAME_TAG).cloned()).expect("a tag")
    };
    channel.wait_until(|s| tag(s) == "new.internal").await;
    check(&channel).await.expect("answered");
    assert_eq!(channel.snapshot().instance("a").expect("there").connects, 1);

    server.links()[0].close.notify_one();
    channel.wait_until(|s| s.instance("a").is_some_and(|a| a.connects == 2)).await;
    check(&channel).await.expect("answered");
    let hosts: Vec<Vec<_>> = server
        .now()
        .iter()
        .map(|now| now.uris.iter().map(|uri| uri.host().unwrap_or_default().to_owned()).collect())
        .collect();
    assert_eq!(hosts, [vec!["old.internal"; 2], vec!["new.internal"]]);
}
