//! An operator who overrules one instance again and again, while its registrant registers it anew, each time with another lease
//! and another weight: what proves L4, and L3 beside it.
//!
//! ```text
//!   not laid ──set, answered──► laid ──clear, answered──► not laid
//!       └──────── no answer ─────┴────► another instance: what was asked of this one may have been done, and may yet be
//! ```
//!
//! Owns whom it overrules and what it writes down of it. What that proves is the validator's to say.

use std::time::Duration;

use registry_proto::v1;
use tokio::time::sleep;

use super::raw::{AFTER_FAILURE, RULED, Raw, Stage, client};
use crate::{
    history::{Cursor, OverrideRecord},
    requests,
};

/// Leases of the instances that are overruled have numbers above this.
const LEASES: u64 = 1_000;

/// Rules until it is quiet.
pub(super) async fn rule(raw: Raw, mut random: fastrand::Rng) {
    let mut at = client(&raw.registry);
    let (mut ruled, mut laid) = (0, false);
    let mut lease = LEASES;
    while *raw.stage.borrow() < Stage::Quiet {
        lease += 1;
        let id = format!("ruled-{ruled}");
        let own = random.u32(1..100);
        let instance = v1::Instance { weight: Some(own), ..requests::instance(&id) };
        match at.register(requests::register(lease, RULED, vec![instance])).await {
            Ok(registered) if random.bool() => {
                let v1::RegisterResponse { epoch, revision, .. } = registered.into_inner();
                let set = (!laid).then(|| random.u32(200..300));
                let request = match set {
                    Some(weight) => requests::override_weight(RULED, &id, weight),
                    None => requests::clear_override(RULED, &id),
                };
                let knows = Cursor { epoch: epoch.into(), revision };
                let asked = OverrideRecord { view: RULED.to_owned(), id, set, knows, answer: None };
                let number = raw.notebook.asked(asked);
                if let Ok(answer) = at.set_override(request).await {
                    let v1::SetOverrideResponse { epoch, revision } = answer.into_inner();
                    raw.notebook.answered(number, Cursor { epoch: epoch.into(), revision });
                    laid = set.is_some();
                } else {
                    (ruled, laid, at) = (ruled + 1, false, client(&raw.registry));
                }
            }
            Ok(_) => {}
            Err(_) => {
                at = client(&raw.registry);
                sleep(AFTER_FAILURE).await;
            }
        }
        sleep(Duration::from_millis(random.u64(300..2_500))).await;
    }
}
