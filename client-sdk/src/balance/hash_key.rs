//! Where a request's hash key comes from, and what a missing one means.
//!
//! ```text
//!   HashKey in the extensions ──none──► the named header ──none──► Endpoint::hash_key ──none──► MissingKey
//! ```
//!
//! A pure function of the request: whoever has one (the channel, the layer) asks it and hands the answer to
//! [`PickContext::hash_key`](super::PickContext::hash_key).

use http::{Extensions, HeaderMap, HeaderName};
use xxhash_rust::xxh64::xxh64;

/// What hash policies hash by, as an extension of a request.
///
/// With tonic, `Request::extensions_mut` takes it and the channel finds it:
///
/// ```
/// use client_sdk::balance::HashKey;
/// let mut request = tonic::Request::new(());
/// request.extensions_mut().insert(HashKey::of("user-17"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HashKey(
    /// The key. It need not be well mixed: a sequential number spreads as evenly as a hash does.
    pub u64,
);

/// Where the keys of requests are looked for. Default: in the request's extensions and the endpoint; a missing key is an
/// error.
///
/// ```
/// use client_sdk::balance::{HashKeys, MissingKey};
/// use http::HeaderName;
/// let keys = HashKeys::new().header(HeaderName::from_static("x-user")).missing(MissingKey::Random);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HashKeys {
    header: Option<HeaderName>,
    missing: MissingKey,
}

/// What it means that a request has no hash key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MissingKey {
    /// A policy that hashes refuses it, with [`PickError::NoHashKey`](super::PickError::NoHashKey).
    #[default]
    Error,
    /// It gets a key at random: it goes anywhere, by weight.
    Random,
}

impl HashKey {
    /// The key of a name: XXH64 of its bytes with seed 0. It is the same in every version and on every machine.
    pub fn of(name: impl AsRef<[u8]>) -> Self {
        Self(xxh64(name.as_ref(), 0))
    }
}

impl HashKeys {
    /// The default: extensions, then the endpoint; a missing key is an error.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the header (gRPC: the metadata key) whose value names the key of a request without a [`HashKey`] extension, as
    /// [`HashKey::of`] the value's bytes. Of several values the first counts; an empty one is none. Default: no header.
    #[must_use]
    pub fn header(mut self, name: HeaderName) -> Self {
        self.header = Some(name);
        self
    }

    /// Sets what a missing key means. Default [`MissingKey::Error`].
    #[must_use]
    pub fn missing(mut self, missing: MissingKey) -> Self {
        self.missing = missing;
        self
    }

    /// The key of a request with these extensions and headers to an endpoint with that key. `random` is asked if there is
    /// none and that is what a missing key means.
    pub fn key(
        &self,
        extensions: &Extensions,
        headers: &HeaderMap,
        endpoint: Option<u64>,
        random: impl FnOnce() -> u64,
    ) -> Option<u64> {
        let extension = || extensions.get::<HashKey>().map(|key| key.0);
        let header = || {
            let value = headers.get(self.header.as_ref()?)?;
            (!value.is_empty()).then(|| HashKey::of(value).0)
        };
        let missing = || match self.missing {
            MissingKey::Error => None,
            MissingKey::Random => Some(random()),
        };
        extension().or_else(header).or(endpoint).or_else(missing)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http::HeaderValue;
    use registry_proto::v1::{ListServicesRequest, registry_client::RegistryClient};
    use tonic::Status;

    use super::*;

    const USER: HeaderName = HeaderName::from_static("x-user");

    fn headers(user: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(USER, HeaderValue::from_static(user))])
    }

    fn extended(key: HashKey) -> Extensions {
        let mut extensions = Extensions::new();
        extensions.insert(key);
        extensions
    }

    #[test]
    fn a_name_has_the_key_that_is_documented() {
        // The published test vectors of XXH64.
        assert_eq!(HashKey::of("").0, 0xEF46_DB37_51D8_E999);
        assert_eq!(HashKey::of("a").0, 0xD24E_C4F1_A98C_6E5B);
    }

    #[test]
    fn the_extension_goes_before_the_header_and_that_before_the_endpoint() {
        let keys = HashKeys::new().header(USER);
        let none = Extensions::new();
        let of = |extensions: &Extensions, headers: &HeaderMap, endpoint| {
            keys.key(extensions, headers, endpoint, || unreachable!("it is an error"))
        };
        assert_eq!(of(&extended(HashKey(7)), &headers("u"), Some(9)), Some(7));
        assert_eq!(of(&none, &headers("u"), Some(9)), Some(HashKey::of("u").0));
        assert_eq!(of(&none, &headers(""), Some(9)), Some(9), "an empty header names nobody");
        assert_eq!(of(&none, &HeaderMap::new(), Some(9)), Some(9));
        assert_eq!(of(&none, &HeaderMap::new(), None), None);
    }

    #[test]
    fn a_header_that_is_not_named_is_not_read() {
        let key = HashKeys::new().key(&Extensions::new(), &headers("u"), None, || 1);
        assert_eq!(key, None);
    }

    #[test]
    fn a_missing_key_is_random_where_that_is_set() {
        let keys = HashKeys::new().missing(MissingKey::Random);
        assert_eq!(keys.key(&Extensions::new(), &HeaderMap::new(), None, || 5), Some(5));
        assert_eq!(keys.key(&extended(HashKey(7)), &HeaderMap::new(), None, || 5), Some(7));
    }

    #[tokio::test]
    async fn a_key_and_a_header_arrive_through_a_generated_client() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&seen);
        let transport = tower::service_fn(move |request: http::Request<tonic::body::Body>| {
            let keys = HashKeys::new().header(USER);
            let key = keys.key(request.extensions(), request.headers(), None, || 0);
            into.lock().expect("unpoisoned").push(key);
            async { Ok::<_, Status>(Status::ok("").into_http::<tonic::body::Body>()) }
        });
        let mut client = RegistryClient::new(transport);
        let mut request = tonic::Request::new(ListServicesRequest::default());
        request.extensions_mut().insert(HashKey::of("user-17"));
        let _ = client.list_services(request).await;
        let mut request = tonic::Request::new(ListServicesRequest::default());
        request.metadata_mut().insert("x-user", "user-18".parse().expect("a value"));
        let _ = client.list_services(request).await;
        let expected = ["user-17", "user-18"].map(|user| Some(HashKey::of(user).0));
        assert_eq!(*seen.lock().expect("unpoisoned"), expected);
    }
}
