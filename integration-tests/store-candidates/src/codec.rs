//! Instances as bytes, for the engines: simpler than the log's format, with no cause, actor, wall time or lease record.

use std::sync::Arc;

use registry_server::core::{InstanceId, LeaseId, ServiceKey, Spec, Status};

use crate::Failure;

// The engines' codec: strings, each after its length.

pub(crate) fn put(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

pub(crate) fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8], Failure> {
    let (taken, rest) = bytes.split_at_checked(count).ok_or("too short")?;
    *bytes = rest;
    Ok(taken)
}

pub(crate) fn take_text(bytes: &mut &[u8]) -> Result<Arc<str>, Failure> {
    let length = u16::from_le_bytes(take(bytes, 2)?.try_into()?);
    Ok(std::str::from_utf8(take(bytes, length.into())?)?.into())
}

pub(crate) fn key_bytes(key: &ServiceKey, id: &InstanceId) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    for text in [&key.namespace, &key.service, id] {
        put(&mut out, text);
    }
    out
}

pub(crate) fn read_key(mut bytes: &[u8]) -> Result<(ServiceKey, InstanceId), Failure> {
    let key = ServiceKey { namespace: take_text(&mut bytes)?, service: take_text(&mut bytes)? };
    Ok((key, take_text(&mut bytes)?))
}

pub(crate) fn value_bytes(spec: &Spec, lease: LeaseId) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(&lease.0);
    out.extend_from_slice(&spec.weight.to_le_bytes());
    for text in [&spec.address, &spec.region, &spec.zone] {
        put(&mut out, text);
    }
    for (key, value) in spec.tags.iter() {
        put(&mut out, key);
        put(&mut out, value);
    }
    out
}

pub(crate) fn read_value(mut bytes: &[u8]) -> Result<(Arc<Spec>, LeaseId), Failure> {
    let lease = LeaseId(take(&mut bytes, 16)?.try_into()?);
    let mut spec = Spec {
        weight: u16::from_le_bytes(take(&mut bytes, 2)?.try_into()?),
        address: take_text(&mut bytes)?,
        region: take_text(&mut bytes)?,
        zone: take_text(&mut bytes)?,
        tags: Default::default(),
        status: Status::Up,
    };
    while !bytes.is_empty() {
        spec.tags.insert(take_text(&mut bytes)?, take_text(&mut bytes)?);
    }
    Ok((Arc::new(spec), lease))
}
