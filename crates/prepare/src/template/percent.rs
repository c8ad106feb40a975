//! Python's `%` of texts.

use super::formatting::{Spec, float_of, number_text};
use super::limits::{Meter, Outcome, raised, refused, type_error, value_error};
use super::printing::{to_str, write_repr};
use super::value::Val;

/// `format % values`.
pub(super) fn format(format: &str, values: &Val<'_>, meter: &Meter) -> Outcome<String> {
    let mut arguments = Arguments { values, used: 0 };
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let text = directive(&mut rest, &mut arguments, meter)?;
        meter.text(text.len())?;
        out.push_str(&text);
        meter.size(out.len())?;
    }
    out.push_str(rest);
    meter.text(out.len())?;
    arguments.check_all_used()?;
    Ok(out)
}

struct Arguments<'a, 't> {
    values: &'a Val<'t>,
    used: usize,
}

impl<'t> Arguments<'_, 't> {
    fn next(&mut self) -> Outcome<Val<'t>> {
        let place = self.used;
        self.used += 1;
        let found = match self.values {
            Val::Tuple(seq) => seq.items.get(place).cloned(),
            other => (place == 0).then(|| other.clone()),
        };
        found.map_or_else(|| type_error("not enough arguments for format string"), Ok)
    }

    fn named(&mut self, name: &str) -> Outcome<Val<'t>> {
        let Val::Dict(dict) = self.values else { return type_error("format requires a mapping") };
        dict.get_text(name).cloned().map_or_else(|| raised(format!("KeyError: '{name}'")), Ok)
    }

    fn check_all_used(&self) -> Outcome<()> {
        let is_left = match self.values {
            Val::Tuple(seq) => self.used < seq.items.len(),
            // What has keys may be left alone.
            Val::Dict(_) | Val::List(_) | Val::Range(_) => false,
            _ => self.used == 0,
        };
        if is_left { type_error("not all arguments converted during string formatting") } else { Ok(()) }
    }

    /// A width or a precision: digits, or `*` for an argument.
    fn number(&mut self, rest: &mut &str) -> Outcome<Option<i128>> {
        if let Some(after) = rest.strip_prefix('*') {
            *rest = after;
            let value = self.next()?;
            return value.as_int().map_or_else(|| type_error("* wants int"), |value| Ok(Some(value)));
        }
        let end = rest.find(|digit: char| !digit.is_ascii_digit()).unwrap_or(rest.len());
        let (digits, after) = rest.split_at(end);
        *rest = after;
        if digits.is_empty() {
            return Ok(None);
        }
        digits.parse().map_or_else(|_| value_error("width too big"), |number| Ok(Some(number)))
    }
}

/// What stands behind a `%`.
fn directive(rest: &mut &str, arguments: &mut Arguments<'_, '_>, meter: &Meter) -> Outcome<String> {
    let mut named = None;
    if let Some(after) = rest.strip_prefix('(') {
        let Some((name, after)) = after.split_once(')') else { return value_error("incomplete format key") };
        if name.contains('(') {
            return refused("a format key with parentheses");
        }
        named = Some(arguments.named(name)?);
        *rest = after;
    }
    let mut spec = Spec::default();
    let mut zero = false;
    while let Some(flag) = rest.chars().next().filter(|flag| "-+ 0#".contains(*flag)) {
        *rest = &rest[1..];
        match flag {
            '-' => spec.align = Some('<'),
            '+' => spec.sign = Some('+'),
            ' ' => spec.sign = spec.sign.or(Some(' ')),
            '0' => zero = true,
            _ => spec.alternate = true,
        }
    }
    if let Some(width) = arguments.number(rest)? {
        if width < 0 {
            spec.align = Some('<');
        }
        spec.width = usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX);
    }
    if let Some(after) = rest.strip_prefix('.') {
        *rest = after;
        let precision = arguments.number(rest)?.unwrap_or(0).max(0);
        spec.precision = Some(usize::try_from(precision).unwrap_or(usize::MAX));
    }
    while rest.starts_with(['h', 'l', 'L']) {
        *rest = &rest[1..];
    }
    let Some(kind) = rest.chars().next() else { return value_error("incomplete format") };
    *rest = &rest[kind.len_utf8()..];
    if kind == '%' {
        return Ok("%".into());
    }
    let value = match named {
        Some(value) => value,
        None => arguments.next()?,
    };
    if zero && spec.align.is_none() && !"srac".contains(kind) {
        (spec.fill, spec.align) = (Some('0'), Some('='));
    }
    converted(kind, &value, &spec, meter)
}

fn converted(kind: char, value: &Val<'_>, spec: &Spec, meter: &Meter) -> Outcome<String> {
    match kind {
        's' | 'r' => {
            let text = if kind == 's' {
                to_str(value, meter)?.to_string()
            } else {
                let mut text = String::new();
                write_repr(&mut text, value, meter)?;
                text
            };
            let text: String = text.chars().take(spec.precision.unwrap_or(usize::MAX)).collect();
            spec.padded("", &text, '>', meter)
        }
        'd' | 'i' | 'u' | 'x' | 'X' | 'o' => whole_number(kind, value, spec, meter),
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let number = float_of(value)?;
            let digits = number_text(number.abs(), kind, spec.precision, spec.alternate)?;
            spec.padded(sign(spec, number.is_sign_negative() && !number.is_nan()), &digits, '>', meter)
        }
        'c' => {
            let text = match value.as_int().map(u32::try_from) {
                Some(code) => match code.ok().and_then(char::from_u32) {
                    Some(character) => character.to_string(),
                    None => return raised("%c arg not in range"),
                },
                None => match value.as_str() {
                    Some(text) if text.chars().count() == 1 => text.to_owned(),
                    _ => return type_error("%c requires int or char"),
                },
            };
            spec.padded("", &text, '>', meter)
        }
        'a' => refused("the format `%a`"),
        other => value_error(format!("unsupported format character '{other}'")),
    }
}

fn sign(spec: &Spec, is_negative: bool) -> &'static str {
    match spec.sign {
        _ if is_negative => "-",
        Some('+') => "+",
        Some(_) => " ",
        None => "",
    }
}

fn whole_number(kind: char, value: &Val<'_>, spec: &Spec, meter: &Meter) -> Outcome<String> {
    let number = match (value, value.as_int()) {
        (_, Some(number)) => number,
        (Val::Float(float), None) if "diu".contains(kind) => match super::value::whole(float.trunc()) {
            Some(number) => number,
            None => return raised("cannot convert the float to a whole number"),
        },
        _ => {
            return type_error(format!("%{kind} format: a number is required, not {}", value.type_name()));
        }
    };
    let magnitude = number.unsigned_abs();
    let (prefix, mut digits) = match kind {
        'x' => ("0x", format!("{magnitude:x}")),
        'X' => ("0X", format!("{magnitude:X}")),
        'o' => ("0o", format!("{magnitude:o}")),
        _ => ("", magnitude.to_string()),
    };
    if let Some(missing) = spec.precision.and_then(|precision| precision.checked_sub(digits.len())) {
        meter.text(missing)?;
        digits.insert_str(0, &"0".repeat(missing));
    }
    let prefix = if spec.alternate { prefix } else { "" };
    spec.padded(&format!("{}{prefix}", sign(spec, number < 0)), &digits, '>', meter)
}
