//! The header of a safetensors file, checked before a byte of a tensor is believed.
//!
//! Eight bytes hold the header's length, then comes JSON: names, number formats, shapes and places of the tensors. The
//! format asks that the tensors lie one after the other and fill the rest of the file.

use std::collections::BTreeMap;
use std::fmt::{self, Formatter};
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::Error;
use crate::error::clipped;

/// The eight bytes before the header.
pub(crate) const LENGTH_BYTES: u64 = 8;
/// The longest header that the format allows.
const MAX_BYTES: u64 = 100_000_000;
/// More tensors than any file has: so many are not believed.
const MAX_TENSORS: usize = 1 << 18;
/// Longer than any tensor's name.
const MAX_NAME_BYTES: usize = 1024;
const MAX_METADATA: usize = 1 << 16;
const MAX_DIMENSIONS: usize = 8;
/// The key beside the tensors, which maps strings to strings.
pub(crate) const METADATA: &str = "__metadata__";

/// What a file says of its tensors.
#[derive(Debug, PartialEq)]
pub(crate) struct Header {
    pub(crate) tensors: BTreeMap<String, Entry>,
    pub(crate) metadata: BTreeMap<String, String>,
    /// Where the tensors' bytes begin in the file.
    pub(crate) start: u64,
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Entry {
    pub(crate) dtype: Dtype,
    #[serde(deserialize_with = "shape")]
    pub(crate) shape: Vec<usize>,
    /// Begin and end, counted from the first byte after the header.
    pub(crate) data_offsets: (u64, u64),
}

impl Entry {
    /// Bytes that the tensor takes. Both numbers were checked with the header.
    pub(crate) fn bytes(&self) -> u64 {
        self.data_offsets.1 - self.data_offsets.0
    }

    /// The bytes that number format and shape ask for; absent where they are no whole number that fits.
    fn expected_bytes(&self) -> Option<u64> {
        let elements = self.shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size))?;
        let bits = elements.checked_mul(self.dtype.bitsize())?;
        if bits.is_multiple_of(8) { u64::try_from(bits / 8).ok() } else { None }
    }
}

impl Header {
    /// Reads and checks the header of a file.
    ///
    /// # Errors
    /// The file is cut short or no safetensors file, or its header contradicts itself or the file's length.
    pub(crate) fn read(file: &fs_err::File, path: &Path) -> Result<Self, Error> {
        let length = file.metadata()?.len();
        let mut file = file;
        let mut first = [0; 8];
        file.seek(SeekFrom::Start(0))?;
        if length < LENGTH_BYTES {
            return Err(torn(path, format!("expected at least {LENGTH_BYTES} bytes, found {length}")));
        }
        file.read_exact(&mut first)?;
        let header = u64::from_le_bytes(first);
        let room = length - LENGTH_BYTES;
        if header > room.min(MAX_BYTES) {
            // Only now: a length may look like the beginning of another format.
            if let Some(error) = foreign(path, first) {
                return Err(error);
            }
            let (most, why) = if room < MAX_BYTES {
                (room, "what follows in the file")
            } else {
                (MAX_BYTES, "the limit of the format")
            };
            return Err(torn(path, format!("header: expected at most {most} bytes, {why}, found {header}")));
        }
        let mut text = vec![0; usize::try_from(header).expect("at most the limit of the format")];
        file.read_exact(&mut text)?;
        Self::parse(&text, room - header).map_err(|problem| torn(path, problem))
    }

    /// Checks a header that is followed by some bytes of tensors; an error says what is wrong with it.
    pub(crate) fn parse(text: &[u8], data_bytes: u64) -> Result<Self, String> {
        let Entries { tensors, metadata } =
            serde_json::from_slice(text).map_err(|error| format!("header: {error}"))?;
        let mut placed: Vec<(&String, &Entry)> = tensors.iter().collect();
        placed.sort_by_key(|(_, entry)| entry.data_offsets);
        let mut free = 0;
        let mut before = "the header".to_owned();
        for (name, entry) in placed {
            let (begin, end) = entry.data_offsets;
            let Entry { dtype, shape, .. } = entry;
            let Some(bytes) = entry.expected_bytes() else {
                return Err(format!(
                    "tensor `{name}`: expected a size in bytes, found {dtype} of shape {shape:?}"
                ));
            };
            if end.checked_sub(begin) != Some(bytes) {
                return Err(format!(
                    "tensor `{name}`: expected {bytes} bytes for {dtype} of shape {shape:?}, found offsets {begin} to {end}"
                ));
            }
            if begin != free {
                let wrong = if begin < free { "an overlap" } else { "a gap" };
                return Err(format!(
                    "tensor `{name}`: expected to begin at {free}, after {before}, found {begin}: {wrong}"
                ));
            }
            free = end;
            before = format!("tensor `{name}`");
        }
        if free != data_bytes {
            let wrong = if free > data_bytes { "the file is cut short" } else { "they belong to no tensor" };
            return Err(format!(
                "expected {free} bytes of tensors as its header says, found {data_bytes}: {wrong}"
            ));
        }
        let start = LENGTH_BYTES + u64::try_from(text.len()).expect("a header in memory fits 64 bits");
        Ok(Self { tensors, metadata, start })
    }

    /// A header of these tensors, in the order of their bytes, with its length before it.
    pub(crate) fn to_bytes<'a>(
        tensors: impl IntoIterator<Item = (&'a String, &'a Entry)>,
        metadata: &BTreeMap<String, String>,
    ) -> Vec<u8> {
        let mut keys = serde_json::Map::new();
        if !metadata.is_empty() {
            keys.insert(METADATA.into(), serde_json::json!(metadata));
        }
        for (name, Entry { dtype, shape, data_offsets }) in tensors {
            let (begin, end) = data_offsets;
            let entry = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, end] });
            keys.insert(name.clone(), entry);
        }
        let mut text = serde_json::Value::Object(keys).to_string().into_bytes();
        // Blanks, so that the tensors begin at a multiple of eight.
        text.resize(text.len().next_multiple_of(8), b' ');
        let length = u64::try_from(text.len()).expect("a header in memory fits 64 bits");
        [&length.to_le_bytes()[..], &text].concat()
    }

    /// Where in the file a tensor's bytes are.
    pub(crate) fn place(&self, entry: &Entry) -> Range<u64> {
        self.start + entry.data_offsets.0..self.start + entry.data_offsets.1
    }
}

fn torn(path: &Path, problem: String) -> Error {
    let (file, problem) = (path.to_owned(), clipped(problem));
    Error::Safetensors { file, problem, hint: "copy or download it again" }
}

/// Other files that people put under the name of weights.
fn foreign(path: &Path, first: [u8; 8]) -> Option<Error> {
    let (found, hint) = match &first {
        [b'G', b'G', b'U', b'F', ..] => ("found GGUF", "use the original safetensors weights of the model"),
        [b'P', b'K', 3, 4, ..] | [0x80, 2, ..] => {
            ("found a PyTorch pickle", "convert it with `save_pretrained(..., safe_serialization=True)`")
        }
        b"version " => ("found a pointer of Git LFS", "fetch the file itself with `git lfs pull`"),
        _ => return None,
    };
    Some(Error::Safetensors { file: path.to_owned(), problem: found.to_owned(), hint })
}

/// The tensors as the JSON has them.
struct Entries {
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let mut entries = Entries { tensors: BTreeMap::new(), metadata: BTreeMap::new() };
        let mut has_metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            if name.len() > MAX_NAME_BYTES {
                let found = name.len();
                return Err(A::Error::custom(format!(
                    "expected names of at most {MAX_NAME_BYTES} bytes, found {found}"
                )));
            }
            if name == METADATA {
                // `null` is what some writers put for nothing.
                let metadata = map.next_value::<Option<Metadata>>()?;
                entries.metadata = metadata.map(|metadata| metadata.0).unwrap_or_default();
                if std::mem::replace(&mut has_metadata, true) {
                    return Err(A::Error::custom(format!("`{METADATA}`: expected once, found twice")));
                }
                continue;
            }
            if entries.tensors.len() == MAX_TENSORS {
                return Err(A::Error::custom(format!("expected at most {MAX_TENSORS} tensors, found more")));
            }
            let entry =
                map.next_value().map_err(|error| A::Error::custom(format!("tensor `{name}`: {error}")))?;
            if let Some(_first) = entries.tensors.insert(name.clone(), entry) {
                return Err(A::Error::custom(format!("tensor `{name}`: expected once, found twice")));
            }
        }
        Ok(entries)
    }
}

/// Strings by strings, which are not read on where no file has so many.
struct Metadata(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Strings;

        impl<'de> Visitor<'de> for Strings {
            type Value = Metadata;

            fn expecting(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
                write!(formatter, "an object of strings in `{METADATA}`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                let mut strings = BTreeMap::new();
                while let Some((key, value)) = map.next_entry()? {
                    if strings.len() == MAX_METADATA {
                        return Err(A::Error::custom(format!(
                            "`{METADATA}`: expected at most {MAX_METADATA} entries, found more"
                        )));
                    }
                    strings.insert(key, value);
                }
                Ok(Metadata(strings))
            }
        }
        deserializer.deserialize_map(Strings)
    }
}

/// A list of sizes that is not read on where no tensor has so many.
fn shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    struct Sizes;

    impl<'de> Visitor<'de> for Sizes {
        type Value = Vec<usize>;

        fn expecting(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
            formatter.write_str("a list of sizes")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<usize>, A::Error> {
            let mut sizes = Vec::new();
            while let Some(size) = list.next_element()? {
                if sizes.len() == MAX_DIMENSIONS {
                    return Err(A::Error::custom(format!(
                        "expected at most {MAX_DIMENSIONS} dimensions, found more"
                    )));
                }
                sizes.push(size);
            }
            Ok(sizes)
        }
    }
    deserializer.deserialize_seq(Sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(dtype: &str, shape: &[usize], offsets: [u64; 2]) -> serde_json::Value {
        serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets })
    }

    /// Two tensors, 24 and 6 bytes, and a scalar of 8.
    fn good() -> serde_json::Value {
        serde_json::json!({
            METADATA: { "format": "pt" },
            "b": entry("F32", &[2, 3], [0, 24]),
            "a": entry("BF16", &[3], [24, 30]),
            "c": entry("I64", &[], [30, 38]),
            "empty": entry("F32", &[0, 4], [30, 30]),
        })
    }

    #[test]
    fn a_header_survives_its_bytes() {
        let header = Header::parse(good().to_string().as_bytes(), 38).unwrap();
        assert_eq!(header.tensors["a"].bytes(), 6);
        assert_eq!(header.metadata["format"], "pt");
        let bytes = Header::to_bytes(&header.tensors, &header.metadata);
        assert_eq!(bytes.len() % 8, 0);
        let again = Header::parse(&bytes[8..], 38).unwrap();
        assert_eq!((again.tensors, again.metadata), (header.tensors, header.metadata));
        assert_eq!(again.start, u64::try_from(bytes.len()).unwrap());
    }

    #[test]
    fn headers_that_contradict_themselves_are_refused_by_tensor() {
        let cases = [
            (
                "b",
                entry("F32", &[2, 3], [0, 20]),
                "tensor `b`: expected 24 bytes for F32 of shape [2, 3], found offsets 0 to 20",
            ),
            ("b", entry("F64", &[2, 3], [0, 24]), "tensor `b`: expected 48 bytes for F64"),
            ("b", entry("F32", &[2, 3], [24, 0]), "tensor `b`: expected 24 bytes"),
            (
                "a",
                entry("BF16", &[3], [22, 28]),
                "tensor `a`: expected to begin at 24, after tensor `b`, found 22: an overlap",
            ),
            ("a", entry("BF16", &[3], [0, 6]), "an overlap"),
            (
                "a",
                entry("BF16", &[4], [24, 32]),
                "tensor `empty`: expected to begin at 32, after tensor `a`, found 30: an overlap",
            ),
            ("a", entry("BF16", &[2], [24, 28]), "found 30: a gap"),
            (
                "c",
                entry("I64", &[2], [30, 46]),
                "expected 46 bytes of tensors as its header says, found 38: the file is cut short",
            ),
            (
                "c",
                entry("I8", &[], [30, 31]),
                "expected 31 bytes of tensors as its header says, found 38: they belong to no tensor",
            ),
            ("c", entry("F4", &[3], [30, 32]), "tensor `c`: expected a size in bytes, found F4 of shape [3]"),
            ("c", entry("F32", &[usize::MAX, 2], [30, 38]), "tensor `c`: expected a size in bytes"),
            ("c", entry("F32", &[1 << 62], [30, 38]), "tensor `c`: expected a size in bytes"),
            ("c", entry("F32", &[1 << 40], [30, 30 + (1 << 42)]), "the file is cut short"),
            ("c", entry("F32", &[2], [u64::MAX - 7, u64::MAX]), "tensor `c`: expected 8 bytes"),
            ("c", entry("Q9", &[2], [30, 38]), "tensor `c`: unknown variant `Q9`"),
            ("c", entry("F32", &[1; 9], [30, 34]), "tensor `c`: expected at most 8 dimensions"),
            (
                "c",
                serde_json::json!({ "dtype": "F32", "shape": [-1], "data_offsets": [30, 38] }),
                "tensor `c`: invalid value",
            ),
            (
                "c",
                serde_json::json!({ "dtype": "F32", "shape": [2] }),
                "tensor `c`: missing field `data_offsets`",
            ),
            ("c", serde_json::json!(7), "tensor `c`: invalid type"),
            (METADATA, serde_json::json!([]), "invalid type"),
        ];
        for (name, value, expected) in cases {
            let mut header = good();
            header[name] = value;
            let problem = Header::parse(header.to_string().as_bytes(), 38).unwrap_err();
            assert!(problem.contains(expected), "{expected}: {problem}");
        }
        let twice = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
        assert!(
            Header::parse(twice.as_bytes(), 1)
                .unwrap_err()
                .contains("tensor `a`: expected once, found twice")
        );
        let long = format!(r#"{{"{}":1}}"#, "n".repeat(2000));
        assert!(
            Header::parse(long.as_bytes(), 0)
                .unwrap_err()
                .contains("names of at most 1024 bytes, found 2000")
        );
        for junk in [&b""[..], b"null", b"[]", b"{", &[0xff; 9], &[0; 64]] {
            assert!(Header::parse(junk, 0).unwrap_err().starts_with("header: "), "{junk:?}");
        }
    }

    #[test]
    fn files_that_are_something_else_are_said_to_be() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let long = |length: u64, rest: usize| [&length.to_le_bytes()[..], &vec![b' '; rest]].concat();
        let cases = [
            (vec![1, 2, 3], "expected at least 8 bytes, found 3"),
            (b"GGUF\x03\0\0\0\0\0".to_vec(), "found GGUF\nhint: use the original safetensors"),
            (b"PK\x03\x04\0\0\0\0\0\0".to_vec(), "found a PyTorch pickle\nhint: convert it"),
            (
                b"version https://git-lfs.github.com/spec/v1\n".to_vec(),
                "found a pointer of Git LFS\nhint: fetch",
            ),
            (
                long(u64::MAX, 20),
                "header: expected at most 20 bytes, what follows in the file, found 18446744073709551615",
            ),
            (long(21, 20), "header: expected at most 20 bytes, what follows in the file, found 21"),
            (long(20, 20), "header: EOF"),
        ];
        for (bytes, expected) in cases {
            std::fs::write(&path, bytes).unwrap();
            let file = fs_err::File::open(&path).unwrap();
            let message = Header::read(&file, &path).unwrap_err().to_string();
            assert!(message.contains(expected) && message.contains("model.safetensors`"), "{message}");
        }
        // A hole of 64 GiB takes no room on the disk.
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(64 << 30).unwrap();
        std::io::Write::write_all(&mut &file, &(32u64 << 30).to_le_bytes()).unwrap();
        let message = Header::read(&fs_err::File::open(&path).unwrap(), &path).unwrap_err().to_string();
        assert!(message.contains("expected at most 100000000 bytes, the limit of the format"), "{message}");
    }

    /// 640 is the first two bytes of a pickle.
    #[test]
    fn a_header_of_640_bytes_is_a_header() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let header = format!("{:<640}", r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#);
        std::fs::write(&path, [&640u64.to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat()).unwrap();
        let found = Header::read(&fs_err::File::open(&path).unwrap(), &path).unwrap();
        assert_eq!(found.tensors["w"].shape, [1]);
    }

    /// Whatever one byte becomes, the header is refused, or it is one whose tensors fill the bytes that are there.
    #[test]
    fn a_thousand_flips_of_a_header_never_panic() {
        let whole = good().to_string().into_bytes();
        let mut random = 1u64;
        let mut refused = 0;
        for flip in 0..1000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mut broken = whole.clone();
            broken[flip % whole.len()] ^= u8::try_from(1 + (random >> 33) % 255).unwrap();
            match Header::parse(&broken, 38) {
                Err(_) => refused += 1,
                Ok(header) => {
                    let bytes: u64 = header.tensors.values().map(Entry::bytes).sum();
                    assert_eq!(bytes, 38, "{}", String::from_utf8_lossy(&broken));
                }
            }
        }
        assert!(refused > 800, "{refused} of 1000 are refused");
    }
}
