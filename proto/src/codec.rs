//! How messages get into and out of the transport's buffers, on the server's side.
//!
//! A stream keeps its two buffers for as long as it lives, and most messages here are short: they begin small and grow
//! with what is in them, where tonic's own begin with 8 KiB each. That is most of what a watcher costs besides its connection.

use std::marker::PhantomData;

use bytes::BufMut;
use prost::Message;
use tonic::{
    Status,
    codec::{BufferSettings, Codec, EncodeBuf, Encoder},
};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

use crate::Frame;

/// What a buffer begins with, in bytes.
const BUFFER: usize = 512;
/// What is encoded is handed to the transport once it is this much, in bytes, as by tonic's own default.
const YIELD: usize = 32 << 10;

fn buffers() -> BufferSettings {
    BufferSettings::new(BUFFER, YIELD)
}

/// Writes and reads messages.
#[derive(Clone, Debug)]
pub struct MessageCodec<T, U> {
    marker: PhantomData<(T, U)>,
}

impl<T, U> Default for MessageCodec<T, U> {
    fn default() -> Self {
        Self { marker: PhantomData }
    }
}

impl<T, U> Codec for MessageCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> ProstEncoder<T> {
        ProstCodec::<T, U>::raw_encoder(buffers())
    }

    fn decoder(&mut self) -> ProstDecoder<U> {
        ProstCodec::<T, U>::raw_decoder(buffers())
    }
}

/// Reads requests of type `U`, and writes [`Frame`]s as they are.
#[derive(Clone, Debug)]
pub struct FrameCodec<T, U> {
    marker: PhantomData<(T, U)>,
}

impl<T, U> Default for FrameCodec<T, U> {
    fn default() -> Self {
        Self { marker: PhantomData }
    }
}

impl<U: Message + Default + Send + 'static> Codec for FrameCodec<Frame, U> {
    type Encode = Frame;
    type Decode = U;
    type Encoder = FrameEncoder;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> FrameEncoder {
        FrameEncoder(())
    }

    fn decoder(&mut self) -> ProstDecoder<U> {
        ProstCodec::<U, U>::raw_decoder(buffers())
    }
}

/// Writes [`Frame`]s as they are.
#[derive(Debug)]
pub struct FrameEncoder(());

impl Encoder for FrameEncoder {
    type Item = Frame;
    type Error = Status;

    fn encode(&mut self, frame: Frame, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(frame.len());
        buffer.put(frame.prefix);
        buffer.put(frame.shared);
        frame.more.into_iter().for_each(|more| buffer.put(more));
        buffer.put(frame.suffix);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        buffers()
    }
}
