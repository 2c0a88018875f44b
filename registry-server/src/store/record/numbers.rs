//! The numbers of the core's enumerations in the store's format. Settled: add, never change.

use super::{DecodeError, missing};
use crate::core::{Cause, Loss, Status};

/// The number of a status.
pub(super) fn status_number(status: Status) -> u32 {
    match status {
        Status::Up => 1,
        Status::Draining => 2,
        Status::Down => 3,
    }
}

/// The status of a number.
pub(super) fn status(number: u32) -> Result<Status, DecodeError> {
    match number {
        1 => Ok(Status::Up),
        2 => Ok(Status::Draining),
        3 => Ok(Status::Down),
        _ => Err(unknown("status", number)),
    }
}

/// The number of a loss.
pub(super) fn loss_number(loss: Loss) -> u32 {
    match loss {
        Loss::TakenOver => 1,
        Loss::Deregistered => 2,
        Loss::Expired => 3,
        Loss::Evicted => 4,
    }
}

/// The loss of a number.
pub(super) fn loss(number: u32) -> Result<Loss, DecodeError> {
    match number {
        1 => Ok(Loss::TakenOver),
        2 => Ok(Loss::Deregistered),
        3 => Ok(Loss::Expired),
        4 => Ok(Loss::Evicted),
        _ => Err(unknown("loss", number)),
    }
}

/// The number of a cause.
pub(super) fn cause_number(cause: Cause) -> u32 {
    match cause {
        Cause::Register => 1,
        Cause::Deregister => 2,
        Cause::Expire => 3,
        Cause::Override => 4,
        Cause::OverrideExpire => 5,
        Cause::RenewHeld => 6,
        Cause::HoldExpire => 7,
        Cause::ResolveHold => 8,
    }
}

/// The cause of a number.
pub(super) fn cause(number: u32) -> Result<Cause, DecodeError> {
    match number {
        1 => Ok(Cause::Register),
        2 => Ok(Cause::Deregister),
        3 => Ok(Cause::Expire),
        4 => Ok(Cause::Override),
        5 => Ok(Cause::OverrideExpire),
        6 => Ok(Cause::RenewHeld),
        7 => Ok(Cause::HoldExpire),
        8 => Ok(Cause::ResolveHold),
        _ => Err(unknown("cause", number)),
    }
}

/// 0 is what an absent field reads as, and no version writes it.
fn unknown(what: &str, number: u32) -> DecodeError {
    if number == 0 { missing(what) } else { DecodeError::Newer(format!("the {what} number {number}")) }
}
