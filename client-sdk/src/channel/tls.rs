//! TLS to instances: whose certificate is expected, and the handshake.
//!
//! Owns the server name of an instance and the agreement on HTTP/2 (ALPN, RFC 7301; required by RFC 9113, 3.2). Does
//! not own the byte stream below, nor the timeout that bounds the handshake. Cryptography is rustls on ring.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use http::uri::{Authority, Scheme};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem, pem::PemObject},
};
use tokio_rustls::TlsConnector;

use super::connection::{ConnectProblem, Origin};
use crate::{
    model::{AddressKind, Instance},
    runtime::Io,
};

/// The tag that names the certificate of an instance.
pub const SERVER_NAME_TAG: &str = "tls.server-name";

/// The protocol's name in ALPN.
const H2: &[u8] = b"h2";

/// TLS to the instances of a channel. Given to [`ChannelBuilder::tls`](super::ChannelBuilder::tls).
///
/// Every instance has to prove, by its certificate, that it is who it should be: by default who its tag
/// [`tls.server-name`](SERVER_NAME_TAG) says or, without that tag, its address's host. Requests carry that name, with
/// the address's port, as their `:authority`, and the scheme `https`. The peer must agree on HTTP/2 (ALPN `h2`).
///
/// An instance whose name is none (a socket in the file system has no host), or who is somebody else, is not
/// connected: see [`ConnectProblem`]. A name that changes closes nothing; it counts from the next connection on.
/// Needs the feature `tls`, which is on by default.
///
/// ```no_run
/// # use std::sync::Arc;
/// # use client_sdk::{BalancedChannel, Endpoint, channel::Tls, discover::Discover};
/// # fn example(discover: Arc<impl Discover>) -> Result<(), Box<dyn std::error::Error>> {
/// let tls = Tls::from_pem(std::fs::read("roots.pem")?)?.server_name_by(|instance| {
///     instance.tags.get("pod").map(|pod| format!("{pod}.greeter.internal"))
/// });
/// let channel = BalancedChannel::builder(discover, Endpoint::new("greeter")).tls(tls).build();
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Tls {
    connector: TlsConnector,
    names: Names,
}

/// Whose certificate is expected.
#[derive(Clone)]
enum Names {
    OfInstance,
    One(String),
    By(Arc<NameOf>),
}

type NameOf = dyn Fn(&Instance) -> Option<String> + Send + Sync;

/// What cannot be used for TLS.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The root certificates are not PEM.
    #[error("the root certificates are not PEM: {0}")]
    Roots(pem::Error),
    /// There is no root certificate, so nobody could be trusted.
    #[error(
        "the PEM text of the root certificates has no `CERTIFICATE` section, so no instance could be trusted"
    )]
    NoRoots,
    /// A root certificate is not one.
    #[error("a root certificate cannot be used: {0}")]
    BadRoot(rustls::Error),
    /// The client's certificates are not PEM.
    #[error("the client's certificate chain is not PEM: {0}")]
    Chain(pem::Error),
    /// The client's private key is not PEM, or there is none.
    #[error("the client's private key cannot be read (PKCS#8, PKCS#1 or SEC1, in PEM): {0}")]
    Key(pem::Error),
    /// The client's certificates and its private key cannot be used, or do not belong together.
    #[error("the client's certificate chain and private key cannot be used: {0}")]
    Identity(rustls::Error),
    /// ring does not offer what rustls needs.
    #[error("no TLS version can be used: {0}")]
    Versions(rustls::Error),
}

impl Tls {
    /// TLS as configured. Of its ALPN protocols nothing is kept: `h2` is the only one.
    #[must_use]
    pub fn from_config(config: Arc<ClientConfig>) -> Self {
        let mut config = Arc::unwrap_or_clone(config);
        config.alpn_protocols = vec![H2.to_vec()];
        Self { connector: TlsConnector::from(Arc::new(config)), names: Names::OfInstance }
    }

    /// TLS 1.2 and 1.3 to instances whose certificates lead to one of these roots, as PEM text.
    pub fn from_pem(roots: impl AsRef<[u8]>) -> Result<Self, TlsError> {
        Ok(Self::from_config(Arc::new(trusting(roots.as_ref())?.with_no_client_auth())))
    }

    /// As [`from_pem`](Self::from_pem), and the client proves who it is to servers that ask: by `chain`, its own
    /// certificate first, and its private key, both as PEM text.
    pub fn from_pem_with_identity(
        roots: impl AsRef<[u8]>,
        chain: impl AsRef<[u8]>,
        key: impl AsRef<[u8]>,
    ) -> Result<Self, TlsError> {
        let chain = CertificateDer::pem_slice_iter(chain.as_ref())
            .collect::<Result<Vec<_>, _>>()
            .map_err(TlsError::Chain)?;
        let key = PrivateKeyDer::from_pem_slice(key.as_ref()).map_err(TlsError::Key)?;
        let config =
            trusting(roots.as_ref())?.with_client_auth_cert(chain, key).map_err(TlsError::Identity)?;
        Ok(Self::from_config(Arc::new(config)))
    }

    /// Expects one name in every instance's certificate, whatever its tag and its address say: a DNS name or an IP
    /// address.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.names = Names::One(name.into());
        self
    }

    /// Asks for each instance which name its certificate should be for: a DNS name or an IP address. `None`: its tag or
    /// its address's host, as by default. Asked at each connecting.
    #[must_use]
    pub fn server_name_by(
        mut self,
        name: impl Fn(&Instance) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.names = Names::By(Arc::new(name));
        self
    }

    /// Who the instance should be.
    pub(super) fn name(&self, instance: &Instance) -> Result<Named<'_>, ConnectProblem> {
        let name = match &self.names {
            Names::One(name) => Ok(name.clone()),
            // A function that panics must not take the connection's task with it.
            Names::By(name) => match catch_unwind(AssertUnwindSafe(|| name(instance))) {
                Ok(Some(name)) => Ok(name),
                Ok(None) => own_name(instance),
                Err(_) => Err("the function that names instances panicked"),
            },
            Names::OfInstance => own_name(instance),
        };
        let name = name
            .map_err(|reason| ConnectProblem::NoServerName { instance: Arc::clone(&instance.id), reason })?;
        let server_name = ServerName::try_from(name.clone()).ok();
        let authority = server_name.as_ref().and_then(|name| authority(name, instance));
        match (server_name, authority) {
            (Some(server_name), Some(authority)) => {
                Ok(Named { connector: &self.connector, name, server_name, authority })
            }
            _ => Err(ConnectProblem::BadServerName { instance: Arc::clone(&instance.id), name }),
        }
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = match &self.names {
            Names::OfInstance => "of the instance",
            Names::One(name) => name,
            Names::By(_) => "by a function",
        };
        f.debug_struct("Tls").field("server_name", &names).finish_non_exhaustive()
    }
}

/// TLS to an instance whose name is known.
pub(super) struct Named<'a> {
    connector: &'a TlsConnector,
    name: String,
    server_name: ServerName<'static>,
    authority: Authority,
}

impl Named<'_> {
    /// What requests say of where they go.
    pub(super) fn origin(&self) -> Origin {
        Origin { scheme: Scheme::HTTPS, authority: self.authority.clone() }
    }

    /// Wraps the byte stream.
    pub(super) async fn handshake(&self, io: Box<dyn Io>) -> Result<Box<dyn Io>, ConnectProblem> {
        let server_name = || self.name.clone();
        let stream = self.connector.connect(self.server_name.clone(), io).await.map_err(|error| {
            if is_alert(&error, rustls::AlertDescription::NoApplicationProtocol) {
                ConnectProblem::NoHttp2 { server_name: server_name() }
            } else {
                ConnectProblem::Tls { server_name: server_name(), source: explained(error) }
            }
        })?;
        if stream.get_ref().1.alpn_protocol() != Some(H2) {
            return Err(ConnectProblem::NoHttp2 { server_name: server_name() });
        }
        Ok(Box::new(stream))
    }
}

fn trusting(
    roots: &[u8],
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, TlsError> {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots) {
        store.add(root.map_err(TlsError::Roots)?).map_err(TlsError::BadRoot)?;
    }
    if store.is_empty() {
        return Err(TlsError::NoRoots);
    }
    // Not the process's default provider, which others may have set, or nobody.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().map_err(TlsError::Versions)?;
    Ok(config.with_root_certificates(store))
}

/// The name that the instance itself gives.
fn own_name(instance: &Instance) -> Result<String, &'static str> {
    if let Some(name) = instance.tags.get(SERVER_NAME_TAG) {
        return Ok(name.clone().into_owned());
    }
    match instance.address.kind() {
        AddressKind::Tcp { host, .. } => Ok(host.to_owned()),
        AddressKind::Unix(_) => Err("its address is a socket in the file system"),
    }
}

/// The name and the address's port, if it has one.
fn authority(name: &ServerName<'_>, instance: &Instance) -> Option<Authority> {
    let host = match name {
        ServerName::IpAddress(rustls::pki_types::IpAddr::V6(_)) => format!("[{}]", name.to_str()),
        _ => name.to_str().into_owned(),
    };
    match instance.address.kind() {
        AddressKind::Tcp { port, .. } => format!("{host}:{port}").parse().ok(),
        AddressKind::Unix(_) => host.parse().ok(),
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn is_alert(error: &io::Error, alert: rustls::AlertDescription) -> bool {
    matches!(tls_error(error), Some(rustls::Error::AlertReceived(received)) if *received == alert)
}

/// What is not TLS at all sounds like broken TLS.
fn explained(error: io::Error) -> io::Error {
    let (kind, text) = match tls_error(&error) {
        Some(rustls::Error::InvalidMessage(_)) => (error.kind(), "what came is not TLS"),
        None => (error.kind(), "it ended in the middle"),
        Some(_) => return error,
    };
    io::Error::new(kind, format!("{text}; does the instance speak TLS on this port? ({error})"))
}

#[cfg(test)]
mod tests;
