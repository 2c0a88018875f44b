//! The published message, and how it travels in a gRPC answer's trailers.

use std::collections::BTreeMap;

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message;

/// The trailer that carries a report (gRFC A51): binary metadata, so its value is base64.
pub(super) const TRAILER: HeaderName = HeaderName::from_static("endpoint-load-metrics-bin");

/// Written without padding and read with or without it, as gRPC has it for binary metadata.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The message `xds.data.orca.v3.OrcaLoadReport` of [cncf/xds](https://github.com/cncf/xds), field by field: how loaded an
/// instance is, in its own words. A number that is not set is 0.
#[derive(Clone, PartialEq, Message)]
pub struct LoadReport {
    /// Share of the CPU in use; may be above 1 where the limit is a soft one.
    #[prost(double, tag = "1")]
    pub cpu_utilization: f64,
    /// Share of the memory in use, 0 to 1.
    #[prost(double, tag = "2")]
    pub mem_utilization: f64,
    /// Requests a second, as whole ones. Out of use: [`rps_fractional`](Self::rps_fractional) took its place.
    #[prost(uint64, tag = "3")]
    pub rps: u64,
    /// What this one request cost, by names of the application's own.
    #[prost(btree_map = "string, double", tag = "4")]
    pub request_cost: BTreeMap<String, f64>,
    /// Shares of further resources in use, 0 to 1, by names of the application's own.
    #[prost(btree_map = "string, double", tag = "5")]
    pub utilization: BTreeMap<String, f64>,
    /// Requests a second, of all services of the instance.
    #[prost(double, tag = "6")]
    pub rps_fractional: f64,
    /// Of these, requests a second that failed.
    #[prost(double, tag = "7")]
    pub eps: f64,
    /// Numbers that mean something to the application only.
    #[prost(btree_map = "string, double", tag = "8")]
    pub named_metrics: BTreeMap<String, f64>,
    /// How loaded the application says it is; may be above 1 where the limit is a soft one.
    #[prost(double, tag = "9")]
    pub application_utilization: f64,
}

/// A trailer that is there and says nothing that can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the trailer `endpoint-load-metrics-bin` is not one base64 text of one `xds.data.orca.v3.OrcaLoadReport`"
)]
pub struct Malformed;

impl LoadReport {
    /// The report among an answer's trailers. `Ok(None)`: there is none.
    pub fn of(trailers: &HeaderMap) -> Result<Option<Self>, Malformed> {
        let mut values = trailers.get_all(TRAILER).iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(Malformed);
        }
        let bytes = BASE64.decode(value.as_bytes()).map_err(|_| Malformed)?;
        Self::decode(&*bytes).map(Some).map_err(|_| Malformed)
    }

    /// How loaded the instance is: by its application's own words, else by its CPU. 0: it did not say.
    pub fn utilization_or_cpu(&self) -> f64 {
        if self.application_utilization > 0.0 { self.application_utilization } else { self.cpu_utilization }
    }

    pub(super) fn to_header(&self) -> HeaderValue {
        let text = BASE64.encode(self.encode_to_vec());
        HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).expect("base64 is visible ASCII")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn trailers(values: &[&[u8]]) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        for value in values {
            trailers.append(TRAILER, HeaderValue::from_bytes(value).expect("a header's value"));
        }
        trailers
    }

    /// The wire format of each field, by hand: a tag of `number << 3 | type` (1: eight bytes, 0: varint, 2: length), and the
    /// number; a map is a message of the fields 1 and 2 for each entry.
    #[test]
    fn it_is_the_published_message_byte_for_byte() {
        let map = |name: &str, value| BTreeMap::from([(name.to_owned(), value)]);
        let report = LoadReport {
            cpu_utilization: 0.5,
            mem_utilization: 0.25,
            rps: 300,
            request_cost: map("a", 1.0),
            utilization: map("b", 0.5),
            rps_fractional: 2.0,
            eps: 0.25,
            named_metrics: map("cd", 1.0),
            application_utilization: 1.0,
        };
        let half = [0, 0, 0, 0, 0, 0, 0xe0, 0x3f];
        let quarter = [0, 0, 0, 0, 0, 0, 0xd0, 0x3f];
        let one = [0, 0, 0, 0, 0, 0, 0xf0, 0x3f];
        let two = [0, 0, 0, 0, 0, 0, 0, 0x40];
        let mut bytes = Vec::new();
        bytes.extend([0x09]);
        bytes.extend(half);
        bytes.extend([0x11]);
        bytes.extend(quarter);
        bytes.extend([0x18, 0xac, 0x02]);
        bytes.extend([0x22, 12, 0x0a, 1, b'a', 0x11]);
        bytes.extend(one);
        bytes.extend([0x2a, 12, 0x0a, 1, b'b', 0x11]);
        bytes.extend(half);
        bytes.extend([0x31]);
        bytes.extend(two);
        bytes.extend([0x39]);
        bytes.extend(quarter);
        bytes.extend([0x42, 13, 0x0a, 2, b'c', b'd', 0x11]);
        bytes.extend(one);
        bytes.extend([0x49]);
        bytes.extend(one);
        assert_eq!(report.encode_to_vec(), bytes);
        assert_eq!(LoadReport::decode(&*bytes).expect("valid"), report);
    }

    #[test]
    fn it_travels_as_binary_metadata_padded_or_not() {
        // 09 00 00 00 00 00 00 e0 3f
        let report = LoadReport { cpu_utilization: 0.5, ..LoadReport::default() };
        assert_eq!(report.to_header(), "CQAAAAAAAOA/");
        let both = LoadReport { rps: 1, ..report.clone() };
        // Two more bytes, 18 01, which padding would make one more group of.
        assert_eq!(both.to_header(), "CQAAAAAAAOA/GAE");
        assert_eq!(LoadReport::of(&trailers(&[b"CQAAAAAAAOA/GAE"])), Ok(Some(both.clone())));
        assert_eq!(LoadReport::of(&trailers(&[b"CQAAAAAAAOA/GAE="])), Ok(Some(both)));
        assert_eq!(LoadReport::of(&HeaderMap::new()), Ok(None));
    }

    #[test]
    fn fields_of_a_later_version_are_passed_over() {
        let later = BASE64.encode([0x09, 0, 0, 0, 0, 0, 0, 0xe0, 0x3f, 0x98, 0x06, 0x01]);
        let report = LoadReport::of(&trailers(&[later.as_bytes()])).expect("readable").expect("there");
        assert!((report.cpu_utilization - 0.5).abs() < f64::EPSILON);
    }

    #[test]
    fn what_cannot_be_read_is_no_report() {
        for bad in [&b"CQAA"[..], b"not base64!", b"\xff\xff", b"CQAAAAAAAOA/,CQAAAAAAAOA/"] {
            assert_eq!(LoadReport::of(&trailers(&[bad])), Err(Malformed), "{bad:?}");
        }
        assert_eq!(LoadReport::of(&trailers(&[b"GAE", b"GAE"])), Err(Malformed), "two of them");
    }

    proptest! {
        #[test]
        fn no_trailer_does_harm(bytes in proptest::collection::vec(0x20_u8..0x7f, 0..80), raw in any::<Vec<u8>>()) {
            let _ = LoadReport::of(&trailers(&[&bytes]));
            let _ = LoadReport::of(&trailers(&[BASE64.encode(raw).as_bytes()]));
        }
    }
}
