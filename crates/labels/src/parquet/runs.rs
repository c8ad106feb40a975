//! The hybrid of runs and bit packing that Parquet has for levels and for indices into a dictionary.

use crate::values::Error;

/// Values in the making, of a fixed number of bits.
pub(crate) struct RunWriter {
    width: u8,
    bytes: Vec<u8>,
    /// Fewer than eight values that do not belong to a run, yet.
    pending: Vec<u32>,
    /// Groups of eight values, packed, and how many.
    packed: Vec<u8>,
    groups: u64,
}

impl RunWriter {
    pub(crate) fn new(width: u8) -> Self {
        Self { width, bytes: Vec::new(), pending: Vec::with_capacity(8), packed: Vec::new(), groups: 0 }
    }

    /// Appends a value `count` times.
    pub(crate) fn push(&mut self, value: u32, count: usize) {
        let mut count = count;
        if !self.pending.is_empty() {
            let taken = count.min(8 - self.pending.len());
            self.pend(value, taken);
            count -= taken;
        }
        // Without bits there is nothing to pack.
        if count >= 8 || self.width == 0 && count > 0 {
            self.flush();
            push_varint(&mut self.bytes, u64::try_from(count).expect("a length fits 64 bits") << 1);
            self.bytes.extend(&value.to_le_bytes()[..usize::from(self.width.div_ceil(8))]);
        } else {
            self.pend(value, count);
        }
    }

    /// The bytes of all values; the last group is filled up with zeros.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        if !self.pending.is_empty() {
            self.pend(0, 8 - self.pending.len());
        }
        self.flush();
        self.bytes
    }

    fn pend(&mut self, value: u32, count: usize) {
        self.pending.extend(std::iter::repeat_n(value, count));
        if self.pending.len() == 8 {
            self.pack();
        }
    }

    /// Packs eight values, least significant bits first.
    fn pack(&mut self) {
        let (mut buffer, mut filled) = (0u64, 0);
        for value in self.pending.drain(..) {
            buffer |= u64::from(value) << filled;
            filled += self.width;
            while filled >= 8 {
                self.packed.push(buffer.to_le_bytes()[0]);
                buffer >>= 8;
                filled -= 8;
            }
        }
        self.groups += 1;
    }

    fn flush(&mut self) {
        if self.groups > 0 {
            push_varint(&mut self.bytes, (self.groups << 1) | 1);
            self.bytes.append(&mut self.packed);
            self.groups = 0;
        }
    }
}

/// Bits of the numbers up to `largest`.
pub(crate) fn bits(largest: u32) -> u8 {
    u8::try_from(u32::BITS - largest.leading_zeros()).expect("at most 32")
}

/// Appends a number in groups of seven bits.
pub(crate) fn push_varint(bytes: &mut Vec<u8>, value: u64) {
    let mut rest = value;
    while rest >= 128 {
        bytes.push(rest.to_le_bytes()[0] | 128);
        rest >>= 7;
    }
    bytes.push(rest.to_le_bytes()[0]);
}

/// Reads `count` values of the hybrid of runs and bit packing, calling `run` with a value and how often it comes.
pub(crate) fn runs(
    bytes: &[u8],
    width: u8,
    count: usize,
    mut run: impl FnMut(u32, usize) -> Result<(), Error>,
) -> Result<(), Error> {
    if width > 32 {
        return Err(bad("a bit width of at most 32", width));
    }
    let (mut rest, mut missing) = (bytes, count);
    while missing > 0 {
        let header = take_varint(&mut rest)?;
        let length = usize::try_from(header >> 1).map_err(|_| short())?;
        if header & 1 == 0 {
            let (value, after) = rest.split_at_checked(usize::from(width).div_ceil(8)).ok_or_else(short)?;
            rest = after;
            let mut bytes = [0; 4];
            bytes[..value.len()].copy_from_slice(value);
            check_count_at_most(missing, length)?;
            if length == 0 {
                return Err(bad("a run of values", "an empty one"));
            }
            run(u32::from_le_bytes(bytes), length)?;
            missing -= length;
        } else {
            let size = length.checked_mul(usize::from(width)).ok_or_else(short)?;
            let (packed, after) = rest.split_at_checked(size).ok_or_else(short)?;
            rest = after;
            let values = missing.min(length.checked_mul(8).ok_or_else(short)?);
            if values == 0 {
                return Err(bad("a run of values", "an empty one"));
            }
            unpack(packed, width, values, &mut run)?;
            missing -= values;
        }
    }
    Ok(())
}

/// Calls `run` with each of the bit-packed values, least significant bits first.
fn unpack(
    packed: &[u8],
    width: u8,
    values: usize,
    run: &mut impl FnMut(u32, usize) -> Result<(), Error>,
) -> Result<(), Error> {
    let (mut buffer, mut bits, mut bytes) = (0u64, 0, packed.iter());
    let mask = (1u64 << width) - 1;
    for _ in 0..values {
        while bits < width {
            buffer |= u64::from(*bytes.next().ok_or_else(short)?) << bits;
            bits += 8;
        }
        run(u32::try_from(buffer & mask).expect("at most 32 bits"), 1)?;
        buffer >>= width;
        bits -= width;
    }
    Ok(())
}

fn take_varint(rest: &mut &[u8]) -> Result<u64, Error> {
    let mut value = 0;
    for shift in (0..35).step_by(7) {
        let (byte, after) = rest.split_first().ok_or_else(short)?;
        *rest = after;
        value |= u64::from(byte & 127) << shift;
        if *byte < 128 {
            return Ok(value);
        }
    }
    Err(bad("an integer of at most 32 bits", "a longer one"))
}

pub(crate) fn check_count_at_most(expected: usize, found: usize) -> Result<(), Error> {
    if found <= expected { Ok(()) } else { Err(bad(format_args!("at most {expected} more values"), found)) }
}

pub(crate) fn bad(expected: impl std::fmt::Display, found: impl std::fmt::Display) -> Error {
    Error::bad("page", expected, found)
}

pub(crate) fn short() -> Error {
    bad("more bytes", "the end of the page")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_specification() {
        let mut runs = RunWriter::new(3);
        (0..8).for_each(|value| runs.push(value, 1));
        assert_eq!(runs.finish(), [3, 0b1000_1000, 0b1100_0110, 0b1111_1010]);
    }

    #[test]
    fn long_runs_stand_alone_and_short_ones_fill_groups() {
        let mut runs = RunWriter::new(1);
        runs.push(0, 1);
        runs.push(1, 207);
        runs.push(0, 3);
        // One group of 8 values, a run of 200, a group of 3.
        assert_eq!(runs.finish(), [3, 0b1111_1110, 0b1001_0000, 3, 1, 3, 0]);
        let mut runs = RunWriter::new(0);
        runs.push(0, 3);
        assert_eq!(runs.finish(), [6]);
    }

    /// Values of the run-length hybrid, as the specification's example has them: 0..8 in 3 bits each.
    #[test]
    fn bit_packed_runs_are_read_from_the_low_bits() {
        let mut values = Vec::new();
        runs(&[3, 0b1000_1000, 0b1100_0110, 0b1111_1010], 3, 8, |value, count| {
            values.extend(std::iter::repeat_n(value, count));
            Ok(())
        })
        .unwrap();
        assert_eq!(values, [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
