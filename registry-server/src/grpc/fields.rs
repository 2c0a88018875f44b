//! The bounds of the protocol, field by field. Every refusal names the field's path, what was found, and the limit.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use registry_proto::v1;

use super::status::Invalid;
use crate::core::{LeaseId, ServiceKey, Status};

/// Characters of a name.
const MAX_NAME: usize = 253;
const MAX_ADDRESS: usize = 261;
const MAX_TAGS: usize = 64;
const MAX_TAG_KEY: usize = 128;
const MAX_TAG_VALUE: usize = 4 << 10;
const DEFAULT_NAMESPACE: &str = "default";

/// A path to a field, made longer as one goes down. It is only put together when something is wrong.
#[derive(Clone, Copy, Debug)]
pub(super) enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl<'a> Path<'a> {
    pub(super) fn field(&'a self, name: &'a str) -> Path<'a> {
        Path::Field(self, name)
    }

    pub(super) fn index(&'a self, index: usize) -> Path<'a> {
        Path::Index(self, index)
    }

    pub(super) fn invalid(&self, problem: impl Into<String>) -> Invalid {
        Invalid::new(self.to_string(), problem)
    }
}

impl std::fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Field(Path::Root, name) => f.write_str(name),
            Path::Field(parent, name) => write!(f, "{parent}.{name}"),
            Path::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// A value that must be there.
pub(super) fn required<'v, T>(value: Option<&'v T>, path: Path<'_>) -> Result<&'v T, Invalid> {
    value.ok_or_else(|| path.invalid("is required"))
}

/// A service's key.
pub(super) fn key(key: Option<&v1::ServiceKey>, path: Path<'_>) -> Result<ServiceKey, Invalid> {
    let key = required(key, path)?;
    Ok(ServiceKey {
        namespace: namespace(&key.namespace, path.field("namespace"))?,
        service: name(&key.service, "._/-", path.field("service"))?,
    })
}

/// A namespace; empty is `default`.
pub(super) fn namespace(text: &str, path: Path<'_>) -> Result<Arc<str>, Invalid> {
    if text.is_empty() { Ok(DEFAULT_NAMESPACE.into()) } else { name(text, "._-", path) }
}

/// An instance's id.
pub(super) fn instance_id(text: &str, path: Path<'_>) -> Result<Arc<str>, Invalid> {
    name(text, "._:/@[]-", path)
}

/// A client's or registrant's name for itself.
pub(super) fn uid(text: &str, path: Path<'_>) -> Result<Arc<str>, Invalid> {
    name(text, "._:/@-", path)
}

/// Free text of bounded length.
pub(super) fn text(text: &str, limit: usize, path: Path<'_>) -> Result<Arc<str>, Invalid> {
    if text.len() > limit {
        return Err(path.invalid(format!("has {} bytes; the limit is {limit}", text.len())));
    }
    // All that is left out is one.
    Ok(if text.is_empty() { Arc::default() } else { text.into() })
}

/// A lease.
pub(super) fn lease_id(bytes: &[u8], path: Path<'_>) -> Result<LeaseId, Invalid> {
    <[u8; 16]>::try_from(bytes)
        .map(LeaseId)
        .map_err(|_| path.invalid(format!("has {} bytes; a lease id has exactly 16", bytes.len())))
}

/// A weight.
pub(super) fn weight(weight: u32, path: Path<'_>) -> Result<u16, Invalid> {
    u16::try_from(weight).map_err(|_| path.invalid(format!("is {weight}; the limit is 65535")))
}

/// A status that may be left unset.
pub(super) fn status(number: i32, path: Path<'_>) -> Result<Option<Status>, Invalid> {
    match v1::InstanceStatus::try_from(number) {
        Ok(v1::InstanceStatus::Unspecified) => Ok(None),
        Ok(v1::InstanceStatus::Up) => Ok(Some(Status::Up)),
        Ok(v1::InstanceStatus::Draining) => Ok(Some(Status::Draining)),
        Ok(v1::InstanceStatus::Down) => Ok(Some(Status::Down)),
        Err(_) => {
            Err(path.invalid(format!("is {number}, which is no InstanceStatus that this server knows")))
        }
    }
}

/// A duration within bounds, in milliseconds.
pub(super) fn duration(
    duration: prost_types::Duration,
    least: Duration,
    most: Duration,
    path: Path<'_>,
) -> Result<u64, Invalid> {
    // Not by the conversions and texts of `prost_types`: those overflow at the ends of the range.
    let prost_types::Duration { seconds, nanos } = duration;
    let whole = u64::try_from(seconds).ok();
    let rest = u32::try_from(nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
    whole
        .zip(rest)
        .map(|(seconds, nanos)| Duration::new(seconds, nanos))
        .filter(|duration| (least..=most).contains(duration))
        .map(|duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
        .ok_or_else(|| {
            path.invalid(format!("is {seconds} s and {nanos} ns; it must be from {least:?} to {most:?}"))
        })
}

/// Tags.
pub(super) fn tags(
    tags: &std::collections::HashMap<String, String>,
    path: Path<'_>,
) -> Result<BTreeMap<Arc<str>, Arc<str>>, Invalid> {
    if tags.len() > MAX_TAGS {
        return Err(path.invalid(format!("has {} tags; the limit is {MAX_TAGS}", tags.len())));
    }
    for (key, value) in tags {
        if key.is_empty() || key.len() > MAX_TAG_KEY {
            let found = key.len();
            return Err(
                path.invalid(format!("has a key of {found} bytes; a key has from 1 to {MAX_TAG_KEY}"))
            );
        }
        if value.len() > MAX_TAG_VALUE {
            let found = value.len();
            return Err(
                path.invalid(format!("`{key}` has a value of {found} bytes; the limit is {MAX_TAG_VALUE}"))
            );
        }
    }
    Ok(tags.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect())
}

/// An address.
pub(super) fn address(text: &str, path: Path<'_>) -> Result<Arc<str>, Invalid> {
    let problem = address_problem(text);
    problem.map_or_else(|| Ok(text.into()), |problem| Err(path.invalid(problem)))
}

fn address_problem(text: &str) -> Option<String> {
    const EXPECTED: &str = "expected `ip:port`, `host:port` or `unix:/absolute/path`";
    if text.is_empty() {
        return Some(format!("is required; {EXPECTED}"));
    }
    if text.len() > MAX_ADDRESS {
        return Some(format!("has {} characters; the limit is {MAX_ADDRESS}", text.len()));
    }
    if let Some(path) = text.strip_prefix("unix:") {
        let absolute = path.len() > 1 && path.starts_with('/') && !path.contains(['\0', '\n']);
        return (!absolute).then(|| format!("is `{text}`, whose path is not absolute; {EXPECTED}"));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Some(format!("is `{text}`, which has no port; {EXPECTED}"));
    };
    if !port.parse::<u16>().is_ok_and(|port| port > 0) || port.starts_with('+') {
        return Some(format!("is `{text}`, whose port is not from 1 to 65535; {EXPECTED}"));
    }
    let valid = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)),
    };
    (!valid).then(|| format!("is `{text}`, whose host is neither a name nor an address; {EXPECTED}"))
}

fn name(text: &str, beside_letters_and_digits: &str, path: Path<'_>) -> Result<Arc<str>, Invalid> {
    if text.is_empty() {
        return Err(path.invalid("is required"));
    }
    if text.len() > MAX_NAME {
        return Err(path.invalid(format!("has {} bytes; the limit is {MAX_NAME} characters", text.len())));
    }
    let beside = beside_letters_and_digits.as_bytes();
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || beside.contains(&byte);
    // All that is allowed is ASCII, so the first byte that is not begins a character.
    match text.bytes().position(|byte| !allowed(byte)) {
        Some(at) => {
            let other = text[at..].chars().next().unwrap_or_default();
            let problem = format!(
                "has the character {other:?}; allowed are A-Z a-z 0-9 and {beside_letters_and_digits}"
            );
            Err(path.invalid(problem))
        }
        None => Ok(text.into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn checked(seconds: i64, nanos: i32) -> Result<u64, Invalid> {
        let (least, most) = (Duration::from_secs(1), Duration::from_hours(24));
        duration(prost_types::Duration { seconds, nanos }, least, most, Path::Root.field("ttl"))
    }

    #[test]
    fn durations_at_the_ends_of_the_range_are_refused_and_do_not_overflow() {
        for (seconds, nanos) in [
            (i64::MIN, 0),
            (i64::MIN, i32::MIN),
            (i64::MAX, i32::MAX),
            (0, i32::MIN),
            (-1, 0),
            (5, -1),
            (5, 1_000_000_000),
            (0, 999_999_999),
            (86_400, 1),
        ] {
            let invalid = checked(seconds, nanos).expect_err("out of bounds");
            assert_eq!(invalid.field, "ttl");
            assert!(invalid.problem.contains("from 1s to 86400s"), "{}", invalid.problem);
        }
        assert_eq!(checked(1, 0), Ok(1_000));
        assert_eq!(checked(86_399, 999_999_999), Ok(86_399_999));
    }

    proptest! {
        #[test]
        fn no_duration_and_no_address_panics(seconds: i64, nanos: i32, text in ".{0,40}") {
            let _ = checked(seconds, nanos);
            let _ = address(&text, Path::Root);
        }
    }
}
