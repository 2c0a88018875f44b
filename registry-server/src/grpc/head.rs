//! What stands before each message of a call: whether it is compressed, and its length.

use tonic::Status;

/// Its bytes.
pub(super) const HEAD: usize = 5;

/// What the head says of the message's length, of which so much is allowed. `None`: it is not there yet.
pub(super) fn length(bytes: &[u8], most: usize) -> Result<Option<usize>, Status> {
    let Some(&[compressed, length @ ..]) = bytes.first_chunk::<HEAD>() else { return Ok(None) };
    match compressed {
        0 => {}
        1 => return Err(Status::internal("the message is compressed, and no `grpc-encoding` says how")),
        other => {
            return Err(Status::internal(format!(
                "the message begins with {other}, which is neither 0 nor 1"
            )));
        }
    }
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > most {
        return Err(Status::out_of_range(format!("the message has {length} bytes; the limit is {most}")));
    }
    Ok(Some(length))
}
