//! What holds for any bytes from outside, as functions that panic where it does not. Fuzzers call them for hours (see
//! `docs/architecture.md`), tests with what proptest makes up; no program has use for them.

use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message as _;
use registry_proto::v1;

use crate::{
    client::{self, Refusal},
    discover,
    orca::LoadReport,
    registration,
    retry::Pushback,
    view,
    view::wire,
    watch::views::fuzzing::{self, Step},
};

/// The bytes as records: a kind, a length of two bytes, and that many bytes or what is left.
fn records(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (head, rest) = bytes.split_first_chunk::<3>()?;
        let length = usize::from(u16::from_le_bytes([head[1], head[2]])).min(rest.len());
        let (record, rest) = rest.split_at(length);
        bytes = rest;
        Some((head[0], record))
    })
}

/// A registry sends these changes to one view.
pub fn view(bytes: &[u8]) {
    let mut view = view::fuzzing::Checked::new();
    for (kind, record) in records(bytes) {
        match kind % 8 {
            0 => view.view.stream_reset(),
            1 => view.view.bookmark("e", record.len() as u64),
            _ => {
                if let Ok(change) = v1::Change::decode(record) {
                    let _ = view.apply(honest(kind, change));
                }
            }
        }
    }
}

/// No fuzzer guesses a digest: half of the changes have one that is true of a snapshot.
fn honest(kind: u8, mut change: v1::Change) -> v1::Change {
    if kind & 8 != 0 {
        change.digest = change.all.iter().fold(0, |sum: u64, it| {
            let id = if it.id.is_empty() { &it.address } else { &it.id };
            sum.wrapping_add(registry_proto::digest::of(id, it.create_revision, it.mod_revision))
        });
    }
    change
}

/// A registry sends these messages on streams that come and go, while views are followed and dropped.
pub fn watch(bytes: &[u8]) {
    let mut views = fuzzing::Checked::new();
    views.step(Step::Follow(0, false));
    for (kind, record) in records(bytes) {
        let first = record.first().copied().unwrap_or_default();
        let step = match kind % 16 {
            0 => Step::Follow(first, false),
            1 => Step::Follow(first, true),
            2 => Step::Drop(first),
            3 => Step::Disconnect,
            4 => Step::Begin,
            5 => Step::Wait(u16::from(first) * 256),
            6 => Step::Send,
            _ => {
                let Ok(mut message) = v1::SubscribeResponse::decode(record) else { continue };
                message.response = message.response.map(|response| match response {
                    v1::subscribe_response::Response::Change(change) => {
                        v1::subscribe_response::Response::Change(honest(kind, change))
                    }
                    other => other,
                });
                Step::Heard(message)
            }
        };
        views.step(step);
    }
}

/// A registry answers registrations, renewals and questions about who has applied them with these.
pub fn lease(bytes: &[u8]) {
    let mut lease = registration::fuzzing::Checked::new();
    let mut applied = [v1::WaitAppliedResponse::default(); 2];
    for (kind, record) in records(bytes) {
        match kind % 4 {
            0 => v1::RegisterResponse::decode(record).map_or((), |it| lease.granted(&it)),
            1 => v1::LeaseException::decode(record).map_or((), |it| lease.lose(it.lost)),
            2 => v1::KeepAliveResponse::decode(record).map_or((), |it| {
                for exception in it.exceptions {
                    lease.lose(exception.lost);
                }
            }),
            _ => v1::WaitAppliedResponse::decode(record).map_or((), |it| {
                applied.rotate_left(1);
                applied[1] = it;
                registration::fuzzing::Checked::applied(&applied);
            }),
        }
    }
}

/// A registry refuses a call with these bytes as the details of its status, or a view with these as what it says of it.
pub fn refusal(bytes: &[u8]) {
    let Some((&code, details)) = bytes.split_first() else { return };
    let message = String::from_utf8_lossy(details);
    let details = bytes::Bytes::copy_from_slice(details);
    let status = tonic::Status::with_details(tonic::Code::from(i32::from(code)), message, details);
    client::check(Refusal::from_status(&status));
    if let Ok(error) = v1::ViewError::decode(status.details()) {
        client::check(Refusal::from_view_error(&error));
    }
}

/// These stand in the place of the cache file.
pub fn cache_file(bytes: &[u8]) {
    discover::cache_file::check(bytes);
}

/// A server's trailers and headers have these values.
pub fn headers(bytes: &[u8]) {
    for name in ["endpoint-load-metrics-bin", "grpc-retry-pushback-ms"] {
        let Ok(value) = HeaderValue::from_bytes(bytes) else { continue };
        let headers = HeaderMap::from_iter([(HeaderName::from_static(name), value)]);
        let _ = LoadReport::of(&headers).map(|report| report.map(|it| it.utilization_or_cpu()));
        if let Some(Pushback::After(pause)) = Pushback::of(&headers) {
            assert!(pause.as_millis() <= i32::MAX as u128, "gRFC A6 has 32 bits");
        }
    }
    // No fuzzer writes base64 for long: the bytes are tried as a report, too.
    if let Ok(report) = LoadReport::decode(bytes) {
        let _ = report.utilization_or_cpu();
    }
}

/// A selector and an instance from a message: as they are read they are written, and read again.
pub fn words(bytes: &[u8]) {
    if let Ok(selector) = v1::Selector::decode(bytes) {
        let read = wire::selector_of(selector);
        assert_eq!(wire::selector_of(wire::selector(&read)), read, "a selector came back as another");
    }
    if let Ok(instance) = v1::Instance::decode(bytes)
        && let Ok(read) = wire::instance(instance)
    {
        let again = wire::instance(wire::to_wire(&read)).expect("what was written can be read");
        assert_eq!(again, read, "an instance came back as another");
        assert!(read.weight <= 65_535);
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn damaged(message: &[u8], at: usize, byte: u8) -> Vec<u8> {
        let mut bytes = message.to_vec();
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
        bytes
    }

    fn frames(kinds: &[u8], messages: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (kind, message) in kinds.iter().zip(messages) {
            bytes.push(*kind);
            bytes.extend_from_slice(&u16::try_from(message.len()).expect("small").to_le_bytes());
            bytes.extend_from_slice(message);
        }
        bytes
    }

    fn any_of_a_range() -> impl Strategy<Value = i64> {
        prop_oneof![any::<i64>(), Just(i64::MIN), Just(i64::MAX), -1..100_i64]
    }

    proptest! {
        #[test]
        fn no_bytes_from_outside_panic_or_do_harm(bytes in vec(any::<u8>(), 0..300)) {
            view(&bytes);
            watch(&bytes);
            lease(&bytes);
            refusal(&bytes);
            cache_file(&bytes);
            headers(&bytes);
            words(&bytes);
        }

        #[test]
        fn no_text_in_a_header_panics(text in "[ -~]{0,40}|-?[0-9]{1,25}|[A-Za-z0-9+/]{0,60}={0,3}") {
            headers(text.as_bytes());
        }

        #[test]
        fn no_answer_and_no_details_of_an_error_do_harm(
            kinds in vec(any::<u8>(), 6),
            (code, seconds, nanos) in (any::<u8>(), any_of_a_range(), any::<i32>()),
            (text, lost) in (".{0,9}", vec((0..6_i32, "[ab]:1"), 0..4)),
            numbers in any::<[u32; 4]>(),
            at in 0..200_usize,
            byte in any::<u8>(),
        ) {
            use tonic_types::pb;
            let duration = prost_types::Duration { seconds, nanos };
            let key = v1::ServiceKey { namespace: String::new(), service: "s".to_owned() };
            let lost = lost.into_iter().map(|(reason, id)| v1::LostInstance { key: Some(key.clone()), id, reason });
            let exception = v1::LeaseException { kind: 3, lost: lost.collect(), ..Default::default() };
            let [acked, lagging, disconnected, not_acking] = numbers;
            let answers = [
                v1::RegisterResponse { epoch: text.repeat(40), ttl: Some(duration), ..Default::default() }.encode_to_vec(),
                exception.encode_to_vec(),
                v1::KeepAliveResponse { exceptions: vec![exception], ..Default::default() }.encode_to_vec(),
                v1::WaitAppliedResponse { acked, lagging, disconnected, not_acking, satisfied: byte > 9 }.encode_to_vec(),
            ];
            for bytes in [answers.to_vec(), answers.iter().map(|it| damaged(it, at, byte)).collect()] {
                let in_order: Vec<u8> = (0..4).collect();
                lease(&frames(&in_order, &bytes));
                lease(&frames(&kinds, &bytes));
            }
            let any = |type_url: &str, value: Vec<u8>| prost_types::Any { type_url: type_url.to_owned(), value };
            let violation = pb::bad_request::FieldViolation { field: text.clone(), ..Default::default() };
            let details = vec![
                any(tonic_types::RetryInfo::TYPE_URL, pb::RetryInfo { retry_delay: Some(duration) }.encode_to_vec()),
                any(
                    tonic_types::ErrorInfo::TYPE_URL,
                    pb::ErrorInfo { reason: text.clone(), ..Default::default() }.encode_to_vec(),
                ),
                any(
                    tonic_types::BadRequest::TYPE_URL,
                    pb::BadRequest { field_violations: vec![violation] }.encode_to_vec(),
                ),
            ];
            let status = pb::Status { code: 3, message: text.clone(), details }.encode_to_vec();
            let of_a_view = v1::ViewError {
                code: i32::from_le_bytes([code, byte, 0, byte]),
                message: text.clone(),
                reason: text.clone(),
                field: text,
                retry_after: Some(duration),
            };
            for bytes in [status, of_a_view.encode_to_vec()] {
                refusal(&[&[code], bytes.as_slice()].concat());
                refusal(&[&[code], damaged(&bytes, at, byte).as_slice()].concat());
            }
        }

        #[test]
        fn no_damaged_message_does_harm(
            changes in vec(crate::view::samples::any_change(), 1..12),
            kinds in vec(any::<u8>(), 12),
            view_id in 0..3_u32,
            at in 0..200_usize,
            byte in any::<u8>(),
        ) {
            let encoded: Vec<_> = changes.iter().map(|change| damaged(&change.encode_to_vec(), at, byte)).collect();
            view(&frames(&kinds, &encoded));
            let encoded: Vec<_> = changes
                .into_iter()
                .map(|change| {
                    let response = Some(v1::subscribe_response::Response::Change(change));
                    damaged(&v1::SubscribeResponse { view_id, response }.encode_to_vec(), at, byte)
                })
                .collect();
            watch(&frames(&kinds, &encoded));
        }
    }
}
