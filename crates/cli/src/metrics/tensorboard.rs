//! TensorBoard's event files: scalars, written by hand (TFRecord frames of `tensorflow.Event` messages).

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use fs_err as fs;

/// An event file, which is made with its first event: a run that fails before it leaves none.
pub(crate) struct EventFile {
    folder: PathBuf,
    file: Option<fs::File>,
}

impl EventFile {
    /// A file to be in `folder`. TensorBoard reads the files of a folder in the order of their names: those of resumed runs
    /// follow.
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), file: None }
    }

    /// One event with a value for each tag; `seconds` since the epoch.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write_scalars(
        &mut self,
        seconds: f64,
        step: u64,
        scalars: &[(String, f32)],
    ) -> io::Result<()> {
        let mut summary = Vec::new();
        for (tag, scalar) in scalars {
            let value = [field(1, tag.as_bytes()), vec![2 << 3 | FIXED_32], scalar.to_le_bytes().to_vec()];
            summary.extend(field(1, &value.concat()));
        }
        self.write_event(seconds, &[of_step(step), field(5, &summary)].concat())
    }

    /// A session starts at `step`: readers forget what they read of it and of later steps (`SessionLog.START`).
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write_start(&mut self, seconds: f64, step: u64) -> io::Result<()> {
        self.write_event(seconds, &[of_step(step), field(7, &[1 << 3 | VARINT, 1])].concat())
    }

    /// Waits until the disk has all.
    ///
    /// # Errors
    /// The disk did not take it.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), fs::File::sync_data)
    }

    fn write_event(&mut self, seconds: f64, rest: &[u8]) -> io::Result<()> {
        let mut frames = Vec::new();
        let file = if let Some(file) = &mut self.file {
            file
        } else {
            fs::create_dir_all(&self.folder)?;
            let name = format!("events.out.tfevents.{seconds:017.6}.softshard.{}", std::process::id());
            let file = fs::OpenOptions::new().write(true).create_new(true).open(self.folder.join(name))?;
            frames = frame(seconds, &field(3, b"brain.Event:2"));
            self.file.insert(file)
        };
        frames.extend(frame(seconds, rest));
        // In one write, so that a killed run leaves whole ones.
        file.write_all(&frames)
    }
}

/// An event between its length and its checksums.
fn frame(seconds: f64, rest: &[u8]) -> Vec<u8> {
    let event = [&[1 << 3 | FIXED_64], &seconds.to_le_bytes()[..], rest].concat();
    let length = (event.len() as u64).to_le_bytes();
    let [of_length, of_event] = [masked_crc32c(&length), masked_crc32c(&event)].map(u32::to_le_bytes);
    [&length[..], &of_length, &event, &of_event].concat()
}

/// Wire types of Protocol Buffers.
const VARINT: u8 = 0;
const FIXED_64: u8 = 1;
const BYTES: u8 = 2;
const FIXED_32: u8 = 5;

fn of_step(step: u64) -> Vec<u8> {
    [vec![2 << 3 | VARINT], varint(step)].concat()
}

/// A field of bytes, a string or a message.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | BYTES][..], &varint(bytes.len() as u64), bytes].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = value.to_le_bytes()[0] & 0x7f;
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

/// CRC-32C as TFRecord stores it.
fn masked_crc32c(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Bit by bit: events are some hundred bytes, one for each shard or step.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let step = |crc: u32, _| (crc >> 1) ^ (POLYNOMIAL * (crc & 1));
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_rfc_3720() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn numbers_of_any_length_are_varints() {
        assert_eq!([varint(0), varint(127), varint(300)], [vec![0], vec![127], vec![0xac, 2]]);
        assert_eq!(varint(u64::MAX).len(), 10);
    }

    /// The bytes that TensorBoard itself reads: `tests/peers/check_metrics.py`.
    #[test]
    fn a_file_is_frames_of_events() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut file = EventFile::new(folder.path());
        file.write_scalars(2.5, 300, &[("a/b".to_owned(), 0.5)]).expect("written");
        let path =
            fs::read_dir(folder.path()).expect("a folder").next().expect("a file").expect("a file").path();
        let bytes = fs::read(&path).expect("read");
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        assert!(name.starts_with("events.out.tfevents.0000000002.500000.softshard."), "{name}");
        let second = &bytes[12 + 24 + 4..];
        assert_eq!(&second[..8], 26u64.to_le_bytes());
        let mut expected = vec![9];
        expected.extend(2.5f64.to_le_bytes());
        expected.extend([16, 0xac, 2, 42, 12, 10, 10, 10, 3]);
        expected.extend(b"a/b");
        expected.push(21);
        expected.extend(0.5f32.to_le_bytes());
        assert_eq!(second[12..12 + 26], expected);
        assert_eq!(second[12 + 26..], masked_crc32c(&expected).to_le_bytes());
        file.write_start(3.5, 7).expect("written");
        let third = &fs::read(&path).expect("read")[bytes.len()..];
        assert_eq!(third[12 + 9..12 + 15], [16, 7, 58, 2, 8, 1]);
    }
}
