//! Where an instance listens.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use smol_str::{SmolStr, format_smolstr};

/// `ip:port` (IPv6 in brackets), `host:port`, or `unix:/absolute/path`. Compares as text. Cheap to clone: up to 23 bytes, as
/// every `ip:port` of IPv4 has, are copied in place, and longer ones are shared.
///
/// ```
/// use client_sdk::model::{Address, AddressKind};
/// let address: Address = "10.0.0.7:8080".parse()?;
/// assert_eq!(address.kind(), AddressKind::Tcp { host: "10.0.0.7", port: 8080 });
/// assert!("10.0.0.7".parse::<Address>().is_err());
/// # Ok::<(), client_sdk::model::AddressError>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(SmolStr);

/// An [`Address`] taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressKind<'a> {
    /// A host name or an IP address (without brackets), and a port.
    Tcp {
        /// The host.
        host: &'a str,
        /// The port, 1 to 65,535.
        port: u16,
    },
    /// A socket in the file system.
    Unix(&'a Path),
}

/// Text that is not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an address: {problem}; expected `ip:port`, `host:port` or `unix:/path`")]
pub struct AddressError {
    text: String,
    problem: &'static str,
}

impl Address {
    /// The address as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address taken apart.
    pub fn kind(&self) -> AddressKind<'_> {
        // `FromStr` lets nothing else pass.
        parse(&self.0).unwrap_or(AddressKind::Unix(Path::new("/")))
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match parse(text) {
            Ok(_) => Ok(Self(text.into())),
            Err(problem) => Err(AddressError { text: text.to_owned(), problem }),
        }
    }
}

impl From<std::net::SocketAddr> for Address {
    fn from(address: std::net::SocketAddr) -> Self {
        Self(format_smolstr!("{address}"))
    }
}

impl TryFrom<PathBuf> for Address {
    type Error = AddressError;

    fn try_from(path: PathBuf) -> Result<Self, AddressError> {
        format!("unix:{}", path.display()).parse()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn parse(text: &str) -> Result<AddressKind<'_>, &'static str> {
    if let Some(path) = text.strip_prefix("unix:") {
        return if path.starts_with('/') && path.len() > 1 {
            Ok(AddressKind::Unix(Path::new(path)))
        } else {
            Err("the socket's path must be absolute")
        };
    }
    let (host, port) = text.rsplit_once(':').ok_or("it has no port")?;
    let port: u16 = port.parse().map_err(|_| "its port is not a number from 1 to 65535")?;
    if port == 0 {
        return Err("its port is 0");
    }
    let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        // As a socket address of a link-local one is written: with its zone's number.
        Some(inside) => format!("[{inside}]:0")
            .parse::<std::net::SocketAddrV6>()
            .map(|_| inside)
            .map_err(|_| "it is not IPv6 in the brackets")?,
        None if host.contains(':') => return Err("an IPv6 address must stand in brackets"),
        None => host,
    };
    if host.is_empty() {
        return Err("it has no host");
    }
    if !text.starts_with('[') && !host.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        return Err("its host has a character other than letters, digits, `.`, `_` and `-`");
    }
    Ok(AddressKind::Tcp { host, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_and_what_is_not_an_address() {
        for good in ["127.0.0.1:80", "[::1]:80", "[fe80::1%2]:80", "greeter.local:9", "unix:/run/a.sock"] {
            assert_eq!(good.parse::<Address>().expect(good).to_string(), good);
        }
        assert_eq!(
            "[::1]:80".parse::<Address>().expect("valid").kind(),
            AddressKind::Tcp { host: "::1", port: 80 }
        );
        let local = std::net::SocketAddrV6::new("fe80::1".parse().expect("an address"), 80, 0, 2);
        assert_eq!(
            Address::from(std::net::SocketAddr::from(local)).kind(),
            AddressKind::Tcp { host: "fe80::1%2", port: 80 }
        );
        for bad in [
            "",
            ":80",
            "a",
            "a:",
            "a:0",
            "a:65536",
            "::1:80",
            "[::g]:1",
            "unix:",
            "unix:a",
            "a b:1",
            "http://a:1",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
