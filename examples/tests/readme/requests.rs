//! The README's grpcurl calls: their JSON, by the rules of proto3, against a real registry.

use prost_reflect::{DescriptorPool, DynamicMessage};
use registry_proto::v1::{
    Change, ChangeKind, DeregisterRequest, RegisterRequest, SetOverrideRequest, WatchRequest,
    registry_client::RegistryClient,
};
use tonic::{Streaming, transport::Endpoint};

use crate::{PATIENCE, RunningRegistry, blocks};

/// Each call's method and body.
fn calls() -> Vec<(String, String)> {
    let mut calls = Vec::new();
    for block in blocks("sh").iter().filter(|block| block.starts_with("grpcurl")) {
        let (command, body) = block.split_once('\n').expect("a body");
        let method = command
            .strip_prefix("grpcurl -plaintext -d @ 127.0.0.1:7400 registry.v1.Registry/")
            .and_then(|rest| rest.strip_suffix(" <<'JSON'"))
            .unwrap_or_else(|| panic!("not a call that is tested: {command}"));
        let body = body.strip_suffix("JSON\n").unwrap_or_else(|| panic!("{command}: the body does not end"));
        calls.push((method.to_owned(), body.to_owned()));
    }
    calls
}

/// Reads a body as grpcurl does: against the descriptors, refusing unknown fields.
fn read<T: prost::Message + Default>(method: &str, body: &str) -> T {
    let pool = DescriptorPool::decode(registry_proto::FILE_DESCRIPTOR_SET).expect("descriptors");
    let service = pool.get_service_by_name("registry.v1.Registry").expect("the service");
    let method = service.methods().find(|known| known.name() == method).expect("a method of the service");
    let mut json = serde_json::Deserializer::from_str(body);
    let message = DynamicMessage::deserialize(method.input(), &mut json)
        .unwrap_or_else(|error| panic!("{}: {error} in\n{body}", method.name()));
    json.end().expect("one body");
    message.transcode_to().expect("the same message")
}

async fn next(changes: &mut Streaming<Change>, kind: ChangeKind) -> Change {
    loop {
        let change = changes.message().await.expect("a stream").expect("no end");
        if change.kind() == kind {
            return change;
        }
    }
}

#[tokio::test]
async fn they_do_what_it_says() {
    let registry = RunningRegistry::start().await;
    let channel =
        Endpoint::from_shared(format!("http://{}", registry.address)).expect("a URI").connect_lazy();
    let mut client = RegistryClient::new(channel);
    let mut watch = None;
    let mut done = Vec::new();
    let all = async {
        for (method, body) in calls() {
            match method.as_str() {
                "Register" => {
                    let request: RegisterRequest = read(&method, &body);
                    let answer = client.register(request).await.expect("registered").into_inner();
                    assert_eq!(answer.ttl.expect("a TTL").seconds, 60);
                    assert_eq!(answer.instances[0].id, "dave");
                }
                "Watch" => {
                    let request: WatchRequest = read(&method, &body);
                    let changes = watch.insert(client.watch(request).await.expect("watched").into_inner());
                    let snapshot = next(changes, ChangeKind::Snapshot).await;
                    assert_eq!((snapshot.all[0].id.as_str(), snapshot.all[0].weight), ("dave", Some(2)));
                    next(changes, ChangeKind::Bookmark).await;
                }
                "SetOverride" => {
                    let request: SetOverrideRequest = read(&method, &body);
                    client.set_override(request).await.expect("set");
                    let changes = watch.as_mut().expect("watched before");
                    assert_eq!(next(changes, ChangeKind::Delta).await.updated[0].weight, Some(0));
                }
                "Deregister" => {
                    let request: DeregisterRequest = read(&method, &body);
                    let answer = client.deregister(request).await.expect("deregistered").into_inner();
                    assert_eq!(answer.removed, 1);
                    let changes = watch.as_mut().expect("watched before");
                    assert_eq!(next(changes, ChangeKind::Delta).await.removed[0].id, "dave");
                }
                other => panic!("{other} is not tested"),
            }
            done.push(method);
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("all calls are answered");
    assert_eq!(done, ["Register", "Watch", "SetOverride", "Deregister"]);
}
