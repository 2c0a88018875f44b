//! Whose certificate is expected, and what cannot be used; handshakes are tested with real servers.

use super::*;
use crate::model::{Address, InstanceBuilder};

fn at(address: &str) -> InstanceBuilder {
    Instance::builder(address.parse::<Address>().expect("an address")).id("one")
}

fn tls() -> Tls {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().expect("versions");
    Tls::from_config(Arc::new(config.with_root_certificates(RootCertStore::empty()).with_no_client_auth()))
}

fn authority_of(tls: &Tls, instance: InstanceBuilder) -> Result<String, String> {
    let named = tls.name(&instance.build()).map_err(|problem| problem.to_string())?;
    let origin = named.origin();
    assert_eq!(origin.scheme, Scheme::HTTPS);
    Ok(origin.authority.to_string())
}

#[test]
fn an_instance_is_who_its_tag_says_or_its_host() {
    for (instance, expected) in [
        (at("a.internal:80"), "a.internal:80"),
        (at("10.0.0.7:80"), "10.0.0.7:80"),
        (at("[::1]:80"), "[::1]:80"),
        (at("10.0.0.7:80").tag(SERVER_NAME_TAG, "b.internal"), "b.internal:80"),
        (at("10.0.0.7:80").tag(SERVER_NAME_TAG, "::1"), "[::1]:80"),
        (at("unix:/run/a.sock").tag(SERVER_NAME_TAG, "c.internal"), "c.internal"),
    ] {
        assert_eq!(authority_of(&tls(), instance.clone()).as_deref(), Ok(expected), "{instance:?}");
    }
}

#[test]
fn one_name_and_a_function_go_before_it() {
    let tagged = at("10.0.0.7:80").tag(SERVER_NAME_TAG, "b.internal").tag("pod", "p");
    let one = tls().server_name("all.internal");
    assert_eq!(authority_of(&one, tagged.clone()).as_deref(), Ok("all.internal:80"));
    let by = tls().server_name_by(|instance| instance.tags.get("pod").map(|pod| format!("{pod}.internal")));
    assert_eq!(authority_of(&by, tagged).as_deref(), Ok("p.internal:80"));
    assert_eq!(authority_of(&by, at("10.0.0.7:80")).as_deref(), Ok("10.0.0.7:80"), "the function knows none");
}

#[test]
fn what_is_no_name_is_said_with_the_instance_and_what_to_do() {
    let problem = authority_of(&tls(), at("unix:/run/a.sock")).expect_err("no name");
    assert!(problem.contains("`one`") && problem.contains("tls.server-name"), "{problem}");
    let panics = tls().server_name_by(|_| panic!("on purpose"));
    let problem = authority_of(&panics, at("a.internal:80")).expect_err("no name");
    assert!(problem.contains("`one`") && problem.contains("panicked"), "{problem}");
    for bad in ["", "a b", "https://a.internal", "a.internal:80", "-a-.internal."] {
        let problem =
            authority_of(&tls(), at("10.0.0.7:80").tag(SERVER_NAME_TAG, bad)).expect_err("not a name");
        assert!(problem.contains("`one`") && problem.contains(&format!("`{bad}`")), "{problem}");
    }
    // A link-local address with its zone is no name that a certificate can have.
    authority_of(&tls(), at("[fe80::1%2]:80")).expect_err("not a name");
}

#[test]
fn pem_that_is_none_is_said() {
    assert!(matches!(Tls::from_pem(""), Err(TlsError::NoRoots)));
    let broken = "-----BEGIN CERTIFICATE-----\n@@@\n-----END CERTIFICATE-----\n";
    assert!(matches!(Tls::from_pem(broken), Err(TlsError::Roots(_))));
    let empty = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(matches!(Tls::from_pem(empty), Err(TlsError::BadRoot(_))));
    assert!(matches!(Tls::from_pem_with_identity("", "", ""), Err(TlsError::Key(_))));
}
