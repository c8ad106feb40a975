//! What a file is, by its first bytes: names of files say little, and pipes have none.

/// How many of a file's first bytes are looked at.
pub(super) const HEAD_BYTES: usize = 4096;

/// What is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Gzip,
    Zstd,
    Parquet,
    /// A JSON array of rows.
    Array,
    /// One row in a line, or text.
    Lines,
}

/// What is not read: its name, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Foreign {
    pub(super) found: String,
    pub(super) hint: &'static str,
}

/// First bytes of kinds that are not read, what they are called, and what to do with them.
type Known = (&'static [u8], &'static str, &'static str);

const UNPACK: &str = "unpack it first, or pack it with gzip or zstd";
const EXPORT: &str = "write its rows as JSONL or Parquet first";
const DATASETS: &str = "write it as Parquet first: `load_from_disk(folder).to_parquet(\"rows.parquet\")`";

const BINARY: [Known; 24] = [
    (b"PK\x03\x04", "a zip archive (.zip, .xlsx, .npz)", UNPACK),
    (b"BZh", "bzip2", UNPACK),
    (b"\xfd7zXZ\x00", "xz", UNPACK),
    (b"\x04\x22\x4d\x18", "LZ4", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", UNPACK),
    (b"Rar!", "a RAR archive", UNPACK),
    (b"\xff\x06\x00\x00sNaPpY", "Snappy", UNPACK),
    (b"\x1f\x9d", "a file of `compress`", UNPACK),
    (b"ARROW1", "an Arrow file (Feather)", DATASETS),
    (b"\xff\xff\xff\xff", "an Arrow stream", DATASETS),
    (b"FEA1", "a Feather file", EXPORT),
    (b"PARE", "a Parquet file with an encrypted footer", EXPORT),
    (b"ORC", "an ORC file", EXPORT),
    (b"Obj\x01", "an Avro file", EXPORT),
    (b"\x89HDF", "an HDF5 file", EXPORT),
    (b"\x93NUMPY", "a NumPy array", EXPORT),
    (b"SQLite format 3\x00", "an SQLite database", EXPORT),
    (b"\x80\x02", "a Python pickle", EXPORT),
    (b"\x80\x03", "a Python pickle", EXPORT),
    (b"\x80\x04", "a Python pickle", EXPORT),
    (b"\x80\x05", "a Python pickle", EXPORT),
    (b"%PDF", "a PDF", EXPORT),
    (b"\x89PNG", "a PNG image", EXPORT),
    (b"\xff\xd8\xff", "a JPEG image", EXPORT),
];

const UTF_16: &str = "convert the file first: `iconv -f UTF-16 -t UTF-8`";
const UTF_32: &str = "convert the file first: `iconv -f UTF-32 -t UTF-8`";

const ENCODINGS: [Known; 4] = [
    (b"\xff\xfe\x00\x00", "UTF-32", UTF_32),
    (b"\x00\x00\xfe\xff", "UTF-32", UTF_32),
    (b"\xff\xfe", "UTF-16", UTF_16),
    (b"\xfe\xff", "UTF-16", UTF_16),
];

/// What a file is that begins with `head`; `is_text` where documents are expected, which may look like anything but
/// binary data.
pub(super) fn kind(head: &[u8], is_text: bool) -> Result<Kind, Foreign> {
    if head.starts_with(b"\x1f\x8b") {
        return Ok(Kind::Gzip);
    }
    // A frame, or one that is to be skipped, as parallel compressors write first.
    if head.starts_with(b"\x28\xb5\x2f\xfd")
        || matches!(head, [first, b'\x2a', b'\x4d', b'\x18', ..] if first >> 4 == 5)
    {
        return Ok(Kind::Zstd);
    }
    if head.starts_with(b"PAR1") {
        return Ok(Kind::Parquet);
    }
    let known = |table: &[Known]| {
        table.iter().find(|(magic, ..)| head.starts_with(magic)).map(|(_, name, hint)| (*name, *hint))
    };
    if let Some((found, hint)) = known(&ENCODINGS).or_else(|| known(&BINARY)) {
        return Err(Foreign { found: found.into(), hint });
    }
    if head.get(257..262) == Some(b"ustar") {
        return Err(Foreign { found: "a tar archive".into(), hint: UNPACK });
    }
    if let [first, 0, ..] | [0, first, ..] = head
        && first.is_ascii()
        && *first != 0
    {
        return Err(Foreign { found: "UTF-16 without a byte order mark".into(), hint: UTF_16 });
    }
    if head.contains(&0) {
        return Err(Foreign { found: format!("binary data that begin {}", shown(head)), hint: EXPORT });
    }
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    if head.starts_with(b"version https://git-lfs") {
        let hint = "this is where the file should be: fetch it with `git lfs pull`";
        return Err(Foreign { found: "a pointer of Git LFS".into(), hint });
    }
    if is_text { text(head) } else { rows(head) }
}

/// Documents: anything but an array of objects, which would be read as one document of JSON.
fn text(head: &[u8]) -> Result<Kind, Foreign> {
    let inner = head.strip_prefix(b"[").map(<[u8]>::trim_ascii_start);
    if inner
        .and_then(|inner| inner.strip_prefix(b"{"))
        .is_some_and(|inner| inner.trim_ascii_start().starts_with(b"\""))
    {
        let hint = "documents are text, or rows with a column `text` in JSONL or Parquet";
        return Err(Foreign { found: "a JSON array".into(), hint });
    }
    Ok(Kind::Lines)
}

/// Rows: objects, one in a line or in an array.
fn rows(head: &[u8]) -> Result<Kind, Foreign> {
    match head.first() {
        None | Some(b'{') => return Ok(Kind::Lines),
        Some(b'[') => return Ok(Kind::Array),
        _ => {}
    }
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let begins = |text: &[u8]| head.len() >= text.len() && head[..text.len()].eq_ignore_ascii_case(text);
    let separated = [b',', b'\t', b';', b'|'].iter().any(|mark| line.contains(mark));
    let (found, hint) = if begins(b"<!doctype html") || begins(b"<html") {
        ("an HTML page", "was a page saved in place of the file behind it?")
    } else if head.starts_with(b"<") {
        ("XML", EXPORT)
    } else if separated {
        ("a table in text (CSV)", "write it as JSONL or Parquet first, for example with pandas")
    } else {
        ("text", "plain text is read with `data.text`")
    };
    Err(Foreign { found: format!("{found} that begins {}", shown(line)), hint })
}

fn shown(bytes: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(&bytes[..bytes.len().min(64)]).chars().take(40).collect();
    format!("{:?}", text.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_by_their_first_bytes() {
        let rows: [(&[u8], Kind); 8] = [
            (b"", Kind::Lines),
            (b" \n{\"messages\"", Kind::Lines),
            (b"\xef\xbb\xbf[ {", Kind::Array),
            (b"\xef\xbb\xbf{", Kind::Lines),
            (b"\x1f\x8b\x08", Kind::Gzip),
            (b"\x28\xb5\x2f\xfd", Kind::Zstd),
            (b"\x50\x2a\x4d\x18\x04\x00\x00\x00", Kind::Zstd),
            (b"PAR1\x15\x04", Kind::Parquet),
        ];
        for (head, expected) in rows {
            assert_eq!(kind(head, false), Ok(expected), "{head:?}");
        }
    }

    #[test]
    fn what_is_not_read_is_named() {
        let cases: [(&[u8], &str); 16] = [
            (b"PK\x03\x04\x14\x00", "a zip archive (.zip, .xlsx, .npz)"),
            (b"ARROW1\x00\x00", "an Arrow file (Feather)"),
            (b"\xff\xff\xff\xff\x08\x01\x00\x00", "an Arrow stream"),
            (b"\x80\x04\x95", "a Python pickle"),
            (b"BZh91AY", "bzip2"),
            (b"\xff\xfe{\x00", "UTF-16"),
            (b"\xfe\xff\x00{", "UTF-16"),
            (b"{\x00\"\x00", "UTF-16 without a byte order mark"),
            (b"\xff\xfe\x00\x00{\x00\x00\x00", "UTF-32"),
            (b"<!DOCTYPE html>\n<html>", "an HTML page that begins \"<!DOCTYPE html>\""),
            (b"<rows>", "XML that begins \"<rows>\""),
            (b"instruction,output\na,b\n", "a table in text (CSV) that begins \"instruction,output\""),
            (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
            (b"hello\n", "text that begins \"hello\""),
            (b"\x01\x02\x00", "binary data that begin \"\\u{1}\\u{2}\\0\""),
            (b"\"a\"", "text that begins \"\\\"a\\\"\""),
        ];
        for (head, expected) in cases {
            assert_eq!(kind(head, false).map_err(|foreign| foreign.found), Err(expected.into()));
        }
        let mut tar = vec![b'a'; 600];
        tar[257..262].copy_from_slice(b"ustar");
        assert_eq!(kind(&tar, true).unwrap_err().found, "a tar archive");
    }

    #[test]
    fn documents_may_look_like_anything_but_an_array_of_objects() {
        for head in [&b"a,b\n"[..], b"<p>", b"[Music]", b"{\"name\"", b"[[1]]"] {
            assert_eq!(kind(head, true), Ok(Kind::Lines));
        }
        assert_eq!(kind(b"[\n {\"text\": 1", true).unwrap_err().found, "a JSON array");
    }
}
