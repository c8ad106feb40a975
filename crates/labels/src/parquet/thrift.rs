//! As much of Thrift's compact protocol as Parquet page headers need, on bytes that are not trusted.
//!
//! Ours, because the reader of the Parquet crate allocates what a header asks for before it looks at it.
//! Source: thrift/doc/specs/thrift-compact-protocol.md.

use crate::values::Error;

/// Structures and lists nest 8 deep in a Parquet footer.
const MAX_DEPTH: usize = 16;
/// Memory that a program may be made to set aside by the sizes of all lists: structures of the Parquet crate take 512
/// bytes at most, where one byte of a file can stand for one.
const MAX_LIST_BYTES: u64 = 512 << 20;

/// Type of a field, as the protocol numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind(u8);

impl Kind {
    pub(crate) const TRUE: Self = Self(1);
    pub(crate) const FALSE: Self = Self(2);
    const BYTE: Self = Self(3);
    pub(crate) const I16: Self = Self(4);
    pub(crate) const I32: Self = Self(5);
    pub(crate) const I64: Self = Self(6);
    const DOUBLE: Self = Self(7);
    pub(crate) const BINARY: Self = Self(8);
    pub(crate) const LIST: Self = Self(9);
    const SET: Self = Self(10);
    pub(crate) const STRUCT: Self = Self(12);
}

/// A position in untrusted bytes.
#[derive(Clone, Debug)]
pub(crate) struct Thrift<'a> {
    rest: &'a [u8],
    depth: usize,
    /// Of [`MAX_LIST_BYTES`], what is left.
    list_bytes: u64,
}

impl<'a> Thrift<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, depth: 0, list_bytes: MAX_LIST_BYTES }
    }

    /// Bytes of memory that the lists that were read may take.
    pub(crate) fn list_bytes(&self) -> usize {
        usize::try_from(MAX_LIST_BYTES - self.list_bytes).unwrap_or(usize::MAX)
    }

    /// What was not read yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Reads a structure: calls `field` with the id and type of each field, which it must read or skip.
    pub(crate) fn fields(
        &mut self,
        mut field: impl FnMut(&mut Self, i16, Kind) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.enter()?;
        let mut id = 0i16;
        loop {
            let [byte] = self.take()?;
            if byte == 0 {
                self.depth -= 1;
                return Ok(());
            }
            // Zero stands for a step that does not fit four bits, or goes back: no structure of Parquet needs that.
            id = match byte >> 4 {
                0 => return Err(bad("fields in their order", "another order")),
                step => {
                    id.checked_add(i16::from(step)).ok_or_else(|| bad("a field id", "a larger number"))?
                }
            };
            field(self, id, Kind(byte & 15))?;
        }
    }

    /// Reads a list: calls `element` with the type of each element, which it must read or skip.
    pub(crate) fn elements(
        &mut self,
        mut element: impl FnMut(&mut Self, Kind) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.enter()?;
        let (kind, size) = self.list()?;
        // Whether these take a byte or none is a matter on which readers differ.
        if kind == Kind::TRUE || kind == Kind::FALSE {
            return Err(bad("no list of booleans", "one"));
        }
        (0..size).try_for_each(|_| element(self, kind))?;
        self.depth -= 1;
        Ok(())
    }

    /// Reads an integer field that is a size or a code: not negative.
    pub(crate) fn size(&mut self, kind: Kind) -> Result<usize, Error> {
        match kind {
            Kind::I32 => usize::try_from(self.integer()?).map_err(|_| bad("a size", "a negative number")),
            Kind(other) => Err(bad("a 32-bit integer", format_args!("a field of type {other}"))),
        }
    }

    /// Goes over a value of any type.
    pub(crate) fn skip(&mut self, kind: Kind) -> Result<(), Error> {
        match kind {
            Kind::TRUE | Kind::FALSE => Ok(()),
            Kind::BYTE => self.take::<1>().map(drop),
            Kind::I16 | Kind::I32 | Kind::I64 => self.varint().map(drop),
            Kind::DOUBLE => self.take::<8>().map(drop),
            Kind::BINARY => {
                let length = usize::try_from(self.varint()?).map_err(|_| end())?;
                self.rest = self.rest.get(length..).ok_or_else(end)?;
                Ok(())
            }
            Kind::LIST | Kind::SET => self.elements(|thrift, kind| thrift.skip(kind)),
            Kind::STRUCT => self.fields(|thrift, _, kind| thrift.skip(kind)),
            Kind(other) => Err(bad("a Parquet field", format_args!("a field of type {other}"))),
        }
    }

    /// Type and number of the elements of a list, after a look at the memory that they may take.
    fn list(&mut self) -> Result<(Kind, u64), Error> {
        let [byte] = self.take()?;
        let element = Kind(byte & 15);
        let size = match byte >> 4 {
            15 => self.varint()?,
            short => u64::from(short),
        };
        let bytes = size.saturating_mul(if element == Kind::STRUCT { 512 } else { 32 });
        self.list_bytes = self.list_bytes.checked_sub(bytes).ok_or_else(|| {
            bad(format!("lists of at most {MAX_LIST_BYTES} bytes in memory"), format!("{size} more elements"))
        })?;
        Ok((element, size))
    }

    /// Goes one level down; all that nests is read by functions that call themselves.
    fn enter(&mut self) -> Result<(), Error> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(bad(format!("at most {MAX_DEPTH} nested structures and lists"), "more"));
        }
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (bytes, rest) = self.rest.split_first_chunk::<N>().ok_or_else(end)?;
        self.rest = rest;
        Ok(*bytes)
    }

    fn integer(&mut self) -> Result<i64, Error> {
        let zigzag = self.varint()?;
        Ok((zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed())
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.take()?;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(value);
            }
        }
        Err(bad("an integer of at most 64 bits", "a longer one"))
    }
}

fn bad(expected: impl std::fmt::Display, found: impl std::fmt::Display) -> Error {
    Error::bad("header", expected, found)
}

fn end() -> Error {
    bad("more bytes", "the end")
}
