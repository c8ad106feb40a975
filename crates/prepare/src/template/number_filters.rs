//! Jinja2's filters of numbers.

use super::calls::{Args, int_of};
use super::formatting::{float_of, number_text};
use super::limits::{Kind, Meter, Outcome, raised, refused, type_error};
use super::operators::{negative, undefined_error};
use super::value::{Val, whole};

pub(super) fn number<'t>(name: &str, value: &Val<'t>, args: Args<'t>, meter: &Meter) -> Outcome<Val<'t>> {
    match name {
        "abs" => {
            let [] = args.bind(name, [], 0)?;
            match value {
                Val::Undefined(undefined) => undefined_error(undefined),
                Val::Float(value) => Ok(Val::Float(value.abs())),
                other => match other.as_int() {
                    Some(int) => negative(&Val::Int(int), if int < 0 { -1 } else { 1 }),
                    None => type_error(format!("bad operand type for abs(): '{}'", other.type_name())),
                },
            }
        }
        "int" => {
            let [default, base] = args.bind(name, ["default", "base"], 0)?;
            let base = base.map_or(Ok(10), |base| int_of(&base, meter))?;
            int(value, default.unwrap_or(Val::Int(0)), base)
        }
        "float" => {
            let [default] = args.bind(name, ["default"], 0)?;
            Ok(match to_float(value)? {
                Some(float) => Val::Float(float),
                None => default.unwrap_or(Val::Float(0.0)),
            })
        }
        "round" => {
            let [precision, method] = args.bind(name, ["precision", "method"], 0)?;
            let precision = precision.map_or(Ok(0), |precision| int_of(&precision, meter))?;
            let method = method.unwrap_or(Val::borrowed("common"));
            match method.as_str() {
                Some("common") => round(value, precision),
                Some(method @ ("ceil" | "floor")) => to_side(value, precision, method == "ceil"),
                _ => raised("method must be common, ceil or floor"),
            }
        }
        _ => {
            let [binary] = args.bind(name, ["binary"], 0)?;
            file_size(value, binary.is_some_and(|binary| binary.is_true())).map(Val::text)
        }
    }
}

/// The digits of a number in a text as Python's `int` and `float` take them: single underscores between digits.
fn without_underscores(text: &str) -> Option<String> {
    let good = text.char_indices().filter(|(_, character)| *character == '_').all(|(at, _)| {
        let digit =
            |character: Option<char>| character.is_some_and(|character| character.is_ascii_alphanumeric());
        digit(text[..at].chars().next_back()) && digit(text[at + 1..].chars().next())
    });
    good.then(|| text.replace('_', ""))
}

/// `int(text, base)`; `None` where Python raises a `ValueError`.
fn parse_int(text: &str, base: i128) -> Outcome<Option<i128>> {
    let text = text.trim_matches(super::lexer::is_space);
    if !text.is_ascii() {
        return refused("a number in digits that are not ASCII");
    }
    let (sign, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) => (if text.starts_with('-') { -1 } else { 1 }, digits),
        None => (1, text),
    };
    let prefixed = |prefix: char| {
        digits
            .strip_prefix('0')?
            .strip_prefix([prefix, prefix.to_ascii_uppercase()])
            .map(|digits| digits.trim_start_matches('_'))
    };
    let (radix, digits) = match base {
        0 => return refused("the base 0 of `int`"),
        2 => (2, prefixed('b').unwrap_or(digits)),
        8 => (8, prefixed('o').unwrap_or(digits)),
        16 => (16, prefixed('x').unwrap_or(digits)),
        3..=36 => (u32::try_from(base).expect("below 37"), digits),
        _ => return refused("a base of `int` that is not from 2 to 36"),
    };
    let Some(digits) = without_underscores(digits).filter(|digits| !digits.is_empty()) else {
        return Ok(None);
    };
    if !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Ok(None);
    }
    match i128::from_str_radix(&digits, radix) {
        Ok(number) => Ok(Some(sign * number)),
        Err(_) => refused("a whole number beyond 128 bits"),
    }
}

/// `float(value)`; `None` where Python raises a `TypeError` or a `ValueError`.
fn to_float(value: &Val<'_>) -> Outcome<Option<f64>> {
    let Some(text) = value.as_str() else {
        return match value {
            Val::Undefined(undefined) => undefined_error(undefined),
            other => Ok(float_of(other).ok()),
        };
    };
    let text = text.trim_matches(super::lexer::is_space);
    if !text.is_ascii() {
        return refused("a number in digits that are not ASCII");
    }
    // Rust's names of what is not finite are a part of Python's.
    Ok(without_underscores(text).and_then(|digits| digits.parse().ok()))
}

fn int<'t>(value: &Val<'t>, default: Val<'t>, base: i128) -> Outcome<Val<'t>> {
    let direct = match value {
        Val::Undefined(undefined) => return undefined_error(undefined),
        Val::Str(text) | Val::Markup(text) => parse_int(text, base)?,
        Val::Float(float) if float.is_infinite() => {
            return raised("cannot convert float infinity to integer");
        }
        other => other.as_int(),
    };
    if let Some(int) = direct {
        return Ok(Val::Int(int));
    }
    // So that "42.23" gives 42.
    match to_float(value) {
        Ok(Some(float)) if float.is_finite() => match whole(float.trunc()) {
            Some(int) => Ok(Val::Int(int)),
            None => refused("a whole number beyond 128 bits"),
        },
        Err(failure) if failure.kind() == Kind::Refused => Err(failure),
        _ => Ok(default),
    }
}

/// Python's `round`: half goes to even, by the exact decimal value.
fn round<'t>(value: &Val<'t>, precision: i128) -> Outcome<Val<'t>> {
    if let Some(int) = value.as_int() {
        let Some(places) = u32::try_from(-precision).ok().filter(|places| *places > 0) else {
            return Ok(Val::Int(int));
        };
        let Some(unit) = 10i128.checked_pow(places) else { return Ok(Val::Int(0)) };
        let (rest, low) = (int.rem_euclid(unit), int.div_euclid(unit));
        let up = rest * 2 > unit || rest * 2 == unit && low % 2 != 0;
        return Ok(Val::Int((low + i128::from(up)) * unit));
    }
    let Val::Float(float) = value else {
        return match value {
            Val::Undefined(undefined) => undefined_error(undefined),
            other => type_error(format!("type {} doesn't define __round__ method", other.type_name())),
        };
    };
    match usize::try_from(precision) {
        Ok(_) if !float.is_finite() => Ok(Val::Float(*float)),
        Ok(precision) if precision > 300 => Ok(Val::Float(*float)),
        Ok(precision) => Ok(Val::Float(format!("{float:.precision$}").parse().expect("digits"))),
        Err(_) => refused("`round` of a float with a negative precision"),
    }
}

fn to_side<'t>(value: &Val<'t>, precision: i128, up: bool) -> Outcome<Val<'t>> {
    let scale = match i32::try_from(precision) {
        Ok(precision) if (0..=300).contains(&precision) => 10f64.powi(precision),
        _ => return refused("`round` with such a precision"),
    };
    if let Val::Undefined(undefined) = value {
        return undefined_error(undefined);
    }
    let scaled = float_of(value)? * scale;
    if !scaled.is_finite() {
        return raised("cannot convert the float to a whole number");
    }
    Ok(Val::Float((if up { scaled.ceil() } else { scaled.floor() } + 0.0) / scale))
}

fn file_size(value: &Val<'_>, binary: bool) -> Outcome<String> {
    let Some(bytes) = to_float(value)? else { return raised("could not convert to float") };
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return Ok("1 Byte".into());
    }
    if bytes < base {
        return Ok(format!("{} Bytes", bytes.trunc()));
    }
    let prefixes = ['k', 'M', 'G', 'T', 'P', 'E', 'Z', 'Y'];
    let mut unit = base;
    for (index, prefix) in prefixes.into_iter().enumerate() {
        unit *= base;
        if bytes < unit || index + 1 == prefixes.len() {
            let number = number_text(base * bytes / unit, 'f', Some(1), false)?;
            let prefix =
                if binary { format!("{}i", prefix.to_ascii_uppercase()) } else { prefix.to_string() };
            return Ok(format!("{number} {prefix}B"));
        }
    }
    unreachable!("the last prefix takes the rest")
}
