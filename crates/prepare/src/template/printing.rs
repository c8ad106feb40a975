//! Python's `str` and `repr`.

use std::fmt::Write;

use super::limits::{MAX_TEXT_BYTES, Meter, Outcome, refused};
use super::value::{Str, Val, ViewKind};

/// Writes `str(value)`.
pub(super) fn write_str(out: &mut String, value: &Val<'_>, meter: &Meter) -> Outcome<()> {
    match value {
        Val::Str(text) | Val::Markup(text) => {
            meter.text(text.len())?;
            out.push_str(text);
        }
        Val::Undefined(_) => {}
        other => write_repr(out, other, meter)?,
    }
    if out.len() > MAX_TEXT_BYTES { meter.text(out.len()) } else { Ok(()) }
}

/// `str(value)`.
pub(super) fn to_str<'t>(value: &Val<'t>, meter: &Meter) -> Outcome<Str<'t>> {
    match value {
        Val::Str(text) | Val::Markup(text) => Ok(text.clone()),
        other => {
            let mut out = String::new();
            write_str(&mut out, other, meter)?;
            Ok(Str::Shared(out.into()))
        }
    }
}

/// Writes `repr(value)`.
pub(super) fn write_repr(out: &mut String, value: &Val<'_>, meter: &Meter) -> Outcome<()> {
    meter.steps(1)?;
    match value {
        Val::Undefined(_) => out.push_str("Undefined"),
        Val::None => out.push_str("None"),
        Val::Bool(value) => out.push_str(if *value { "True" } else { "False" }),
        Val::Int(value) => push(out, format_args!("{value}")),
        Val::Float(value) => out.push_str(&float_repr(*value)),
        Val::Str(text) => write_text_repr(out, text, meter)?,
        Val::Markup(text) => {
            out.push_str("Markup(");
            write_text_repr(out, text, meter)?;
            out.push(')');
        }
        Val::List(seq) => write_items(out, "[", &seq.items, "]", meter)?,
        Val::Tuple(seq) => {
            let end = if seq.items.len() == 1 { ",)" } else { ")" };
            write_items(out, "(", &seq.items, end, meter)?;
        }
        Val::Dict(dict) => write_entries(out, ("{", ": ", "}"), &dict.entries, meter)?,
        Val::View(ViewKind::Items, dict) => {
            out.push_str("dict_items([");
            for (index, (key, value)) in dict.entries.iter().enumerate() {
                out.push_str(if index > 0 { ", (" } else { "(" });
                write_repr(out, key, meter)?;
                out.push_str(", ");
                write_repr(out, value, meter)?;
                out.push(')');
            }
            out.push_str("])");
        }
        Val::View(kind, dict) => {
            let keys = *kind == ViewKind::Keys;
            let items: Vec<Val<'_>> = dict
                .entries
                .iter()
                .map(|(key, value)| if keys { key.clone() } else { value.clone() })
                .collect();
            write_items(out, if keys { "dict_keys([" } else { "dict_values([" }, &items, "])", meter)?;
        }
        Val::Range(steps) => {
            push(out, format_args!("range({}, {}", steps.start, steps.stop));
            if steps.step != 1 {
                push(out, format_args!(", {}", steps.step));
            }
            out.push(')');
        }
        other => {
            let name = other.type_name();
            return refused(format_args!("printing a `{name}` (a generator is printed by `| list`)"));
        }
    }
    if out.len() > MAX_TEXT_BYTES { meter.text(out.len()) } else { Ok(()) }
}

fn push(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    out.write_fmt(arguments).expect("a string takes all");
}

fn write_items(out: &mut String, begin: &str, items: &[Val<'_>], end: &str, meter: &Meter) -> Outcome<()> {
    out.push_str(begin);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        write_repr(out, item, meter)?;
    }
    out.push_str(end);
    Ok(())
}

fn write_entries(
    out: &mut String,
    (begin, between, end): (&str, &str, &str),
    entries: &[(Val<'_>, Val<'_>)],
    meter: &Meter,
) -> Outcome<()> {
    out.push_str(begin);
    for (index, (key, value)) in entries.iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        write_repr(out, key, meter)?;
        out.push_str(between);
        write_repr(out, value, meter)?;
    }
    out.push_str(end);
    Ok(())
}

/// A text in quotes, as Python writes it.
fn write_text_repr(out: &mut String, text: &str, meter: &Meter) -> Outcome<()> {
    meter.text(text.len())?;
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if character == quote => {
                out.push('\\');
                out.push(character);
            }
            _ if is_printable(character) => out.push(character),
            _ => match u32::from(character) {
                code @ 0..=0xff => push(out, format_args!("\\x{code:02x}")),
                code @ 0x100..=0xffff => push(out, format_args!("\\u{code:04x}")),
                code => push(out, format_args!("\\U{code:08x}")),
            },
        }
    }
    out.push(quote);
    Ok(())
}

/// Python's `str.isprintable`, which Rust's `escape_debug` follows too.
pub(super) fn is_printable(character: char) -> bool {
    if character.is_ascii() {
        return !character.is_ascii_control();
    }
    // Behind another character, because marks at the beginning are escaped.
    let mut buffer = [b'a'; 5];
    let length = 1 + character.encode_utf8(&mut buffer[1..]).len();
    let text = std::str::from_utf8(&buffer[..length]).expect("two characters");
    text.escape_debug().nth(1) == Some(character)
}

/// Python's `repr` of a float: the shortest digits that read back, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn float_repr(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.into();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').expect("written with an exponent");
    let exponent: i32 = exponent.parse().expect("an exponent");
    if (-4..16).contains(&exponent) || value == 0.0 {
        return format!("{value:?}").replace("e0", "");
    }
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        let cases = [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e16, "1e+16"),
            (123_456_789_012_345_680.0, "1.2345678901234568e+17"),
            (9_999_999_999_999_998.0, "9999999999999998.0"),
            (0.0001, "0.0001"),
            (0.000_01, "1e-05"),
            (1e-300, "1e-300"),
            (f64::NAN, "nan"),
        ];
        for (value, expected) in cases {
            assert_eq!(float_repr(value), expected);
        }
    }

    #[test]
    fn texts_are_quoted_as_python_quotes_them() {
        let cases = [
            ("a'b", "\"a'b\""),
            ("a'b\"", "'a\\'b\"'"),
            ("\n\u{1}é\u{a0}\u{200b}\u{301}", "'\\n\\x01é\\xa0\\u200b\u{301}'"),
        ];
        for (text, expected) in cases {
            let mut out = String::new();
            write_repr(&mut out, &Val::borrowed(text), &Meter::default()).unwrap();
            assert_eq!(out, expected);
        }
    }
}
