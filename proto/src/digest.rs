//! The digest of a view: the wrapping sum, over its instances, of a hash of (id, `create_revision`, `mod_revision`).
//!
//! A sum can be kept up to date by adding what enters and subtracting what leaves, and does not depend on order or on
//! the schema. Keeps promise W8 (self-verifying) possible.

use xxhash_rust::xxh3::xxh3_64;

/// Room on the stack for what nearly all ids come to: this is computed with every change, and for every instance received.
const USUAL: usize = 128;

/// What one instance adds to its view's digest: XXH3-64 of the id's length (u32), the id, `create_revision` (u64)
/// and `mod_revision` (u64), integers little-endian.
///
/// ```
/// use registry_proto::digest;
/// let view = [("a", 1, 1), ("b", 2, 5)];
/// let sum = view.iter().fold(0u64, |sum, (id, created, changed)| sum.wrapping_add(digest::of(id, *created, *changed)));
/// assert_eq!(sum.wrapping_sub(digest::of("b", 2, 5)), digest::of("a", 1, 1));
/// ```
pub fn of(id: &str, create_revision: u64, mod_revision: u64) -> u64 {
    let length = 4 + id.len() + 16;
    let fill = |bytes: &mut [u8]| {
        // Ids are bounded to 253 characters, far below u32::MAX.
        bytes[..4].copy_from_slice(&u32::try_from(id.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes[4..length - 16].copy_from_slice(id.as_bytes());
        bytes[length - 16..length - 8].copy_from_slice(&create_revision.to_le_bytes());
        bytes[length - 8..].copy_from_slice(&mod_revision.to_le_bytes());
        xxh3_64(bytes)
    };
    if length <= USUAL { fill(&mut [0; USUAL][..length]) } else { fill(&mut vec![0; length]) }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample};

    use super::of;

    fn sum(view: &[(String, u64, u64)]) -> u64 {
        view.iter().fold(0, |sum: u64, (id, created, changed)| sum.wrapping_add(of(id, *created, *changed)))
    }

    fn entry() -> impl Strategy<Value = (String, u64, u64)> {
        ("[ab\\x00]{0,4}", prop_oneof![0..4_u64, any::<u64>()], prop_oneof![0..4_u64, any::<u64>()])
    }

    proptest! {
        /// What holds of the sum lets it be kept up to date; what holds of the hash lets it notice.
        #[test]
        fn it_is_free_of_order_undone_by_subtraction_and_another_for_another_instance(
            view in vec(entry(), 1..20),
            other in entry(),
            at in any::<sample::Index>(),
        ) {
            let at = at.index(view.len());
            let mut turned = view.clone();
            turned.rotate_left(at);
            turned.reverse();
            prop_assert_eq!(sum(&turned), sum(&view));

            let mut rest = view.clone();
            let gone = rest.remove(at);
            prop_assert_eq!(sum(&view).wrapping_sub(of(&gone.0, gone.1, gone.2)), sum(&rest));
            let incremental = sum(&rest).wrapping_add(of(&other.0, other.1, other.2));
            rest.push(other.clone());
            prop_assert_eq!(incremental, sum(&rest));
            prop_assert_eq!(incremental == sum(&view), other == gone);
        }
    }

    #[test]
    fn the_wire_definition_is_fixed() {
        // Computed from the definition with an implementation of XXH3-64 in another language; docs/protocol.md has them.
        for (id, created, changed, expected) in [
            ("", 0, 0, 0x1677_3ceb_7fe4_97b1),
            ("a", 1, 1, 0x05bc_c2a0_3f79_9ef2),
            ("127.0.0.1:8080", 7, 9, 0x7c42_a555_8521_e53c),
            ("i-0123456789", 1 << 40, (1 << 40) + 5, 0x3676_89a5_be04_80d0),
            (&"x".repeat(253), 1, u64::MAX, 0x0290_8594_45aa_4632),
        ] {
            assert_eq!(of(id, created, changed), expected, "{id} {created} {changed}");
        }
    }
}
