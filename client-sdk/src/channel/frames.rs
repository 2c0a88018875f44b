//! Tells the frames of HTTP/2 apart in what is read and written, without reading them: that is h2's business.

/// Length of a frame's header (RFC 9113, 4.1): three bytes of length, the type, flags, and four of the stream's number.
const HEADER: usize = 9;
/// Length of what a client says before its first frame (RFC 9113, 3.4).
const PREFACE: usize = 24;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const GOAWAY: u8 = 7;
pub(super) const END_STREAM: u8 = 1;

/// Where in a frame the bytes are that come next.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// How much of what is no frame is still to come.
    preface: usize,
    /// The part of the header that is here.
    header: [u8; HEADER],
    have: usize,
    /// How much of what is behind the header is still to come.
    left: usize,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// What it is.
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl Frames {
    /// What a client says: it begins with the preface.
    pub(super) fn of_client() -> Self {
        Self { preface: PREFACE, ..Self::default() }
    }

    /// Takes in what comes next, and tells of each frame that is here to its end.
    pub(super) fn take(&mut self, mut new: &[u8], mut tell: impl FnMut(Frame)) {
        let (preface, rest) = new.split_at(new.len().min(self.preface));
        self.preface -= preface.len();
        new = rest;
        loop {
            if self.have < HEADER {
                let (part, rest) = new.split_at(new.len().min(HEADER - self.have));
                self.header[self.have..][..part.len()].copy_from_slice(part);
                self.have += part.len();
                new = rest;
                if self.have < HEADER {
                    return;
                }
                let [a, b, c, ..] = self.header;
                self.left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            }
            let (_, rest) = new.split_at(new.len().min(self.left));
            self.left -= new.len() - rest.len();
            new = rest;
            if self.left > 0 {
                return;
            }
            self.have = 0;
            tell(self.frame());
        }
    }

    /// What has begun and not ended, if that is known.
    pub(super) fn begun(&self) -> Option<Frame> {
        (self.have == HEADER).then(|| self.frame())
    }

    fn frame(&self) -> Frame {
        let [_, _, _, kind, flags, stream @ ..] = self.header;
        // The first bit is reserved, and means nothing.
        Frame { kind, flags, stream: u32::from_be_bytes(stream) & (u32::MAX >> 1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_told_apart_however_they_are_cut() {
        let mut bytes = Vec::new();
        let mut expected = Vec::new();
        for (length, kind, flags, stream) in [
            (0, SETTINGS, 0, 0),
            (300, DATA, END_STREAM, 5),
            (4, RST_STREAM, 0, 0x7fff_ffff),
            (0, DATA, 0, 1),
        ] {
            bytes.extend(&u32::to_be_bytes(length)[1..]);
            bytes.extend([kind, flags]);
            bytes.extend(u32::to_be_bytes(stream | 1 << 31));
            bytes.extend(vec![9; length as usize]);
            expected.push(Frame { kind, flags, stream });
        }
        for cut in 1..=bytes.len() {
            let (mut frames, mut told) = (Frames::default(), Vec::new());
            for part in bytes.chunks(cut) {
                frames.take(part, |frame| told.push(frame));
            }
            assert_eq!(told, expected, "cut after {cut}");
            assert_eq!(frames.begun(), None);
        }
    }

    #[test]
    fn what_a_client_says_before_its_first_frame_is_passed_over() {
        let bytes = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0, 0, 1, DATA, 0, 0, 0, 0, 3, 9]].concat();
        for cut in 1..=bytes.len() {
            let (mut frames, mut told) = (Frames::of_client(), Vec::new());
            for part in bytes.chunks(cut) {
                frames.take(part, |frame| told.push(frame));
            }
            assert_eq!(told, [Frame { kind: DATA, flags: 0, stream: 3 }], "cut after {cut}");
        }
    }

    #[test]
    fn what_has_begun_is_known_with_its_header() {
        let mut frames = Frames::default();
        frames.take(b"HTTP/1.1", |_| panic!("no frame"));
        assert_eq!(frames.begun(), None);
        frames.take(b" ", |_| panic!("no frame"));
        assert_eq!(frames.begun().expect("a header").kind, b'P');
    }
}
