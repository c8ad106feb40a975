//! Python's format specifications, and `str.format`.

use super::calls::Args;
use super::limits::{Meter, Outcome, raised, refused, type_error, value_error};
use super::operators::as_float;
use super::printing::{float_repr, to_str, write_repr};
use super::render::Renderer;
use super::value::{Str, Val};

/// Digits behind the point that are written at most.
const MAX_PRECISION: usize = 1000;

/// `[[fill]align][sign][#][0][width][grouping][.precision][type]`
#[derive(Clone, Debug, Default)]
pub(super) struct Spec {
    pub(super) fill: Option<char>,
    pub(super) align: Option<char>,
    pub(super) sign: Option<char>,
    pub(super) alternate: bool,
    pub(super) width: usize,
    pub(super) grouping: Option<char>,
    pub(super) precision: Option<usize>,
    pub(super) kind: Option<char>,
}

impl Spec {
    fn parse(text: &str) -> Outcome<Self> {
        let mut spec = Self::default();
        let mut rest = text;
        let is_align = |character: char| matches!(character, '<' | '>' | '=' | '^');
        let mut characters = rest.chars();
        match (characters.next(), characters.next()) {
            (Some(fill), Some(align)) if is_align(align) => {
                (spec.fill, spec.align) = (Some(fill), Some(align));
                rest = characters.as_str();
            }
            (Some(align), _) if is_align(align) => {
                spec.align = Some(align);
                rest = &rest[1..];
            }
            _ => {}
        }
        if let Some(sign) = rest.chars().next().filter(|sign| matches!(sign, '+' | '-' | ' ')) {
            spec.sign = Some(sign);
            rest = &rest[1..];
        }
        if let Some(after) = rest.strip_prefix('#') {
            (spec.alternate, rest) = (true, after);
        }
        if let Some(after) = rest.strip_prefix('0') {
            rest = after;
            spec.fill = spec.fill.or(Some('0'));
            spec.align = spec.align.or(Some('='));
        }
        spec.width = number(&mut rest)?.unwrap_or(0);
        if let Some(grouping) = rest.chars().next().filter(|grouping| matches!(grouping, ',' | '_')) {
            spec.grouping = Some(grouping);
            rest = &rest[1..];
        }
        if let Some(after) = rest.strip_prefix('.') {
            rest = after;
            match number(&mut rest)? {
                Some(precision) => spec.precision = Some(precision),
                None => return value_error("format specifier missing precision"),
            }
        }
        let mut characters = rest.chars();
        spec.kind = characters.next();
        if characters.next().is_some() {
            return value_error("invalid format specifier");
        }
        Ok(spec)
    }

    /// The text with its fill; digits are padded after their sign with `=`.
    pub(super) fn padded(&self, sign: &str, text: &str, default: char, meter: &Meter) -> Outcome<String> {
        let length = sign.chars().count() + text.chars().count();
        let missing = self.width.saturating_sub(length);
        meter.text(missing.saturating_mul(4).saturating_add(text.len()))?;
        let fill = |count: usize| String::from(self.fill.unwrap_or(' ')).repeat(count);
        Ok(match self.align.unwrap_or(default) {
            '<' => format!("{sign}{text}{}", fill(missing)),
            '=' => format!("{sign}{}{text}", fill(missing)),
            '^' => format!("{}{sign}{text}{}", fill(missing / 2), fill(missing - missing / 2)),
            _ => format!("{}{sign}{text}", fill(missing)),
        })
    }

    fn sign_of(&self, is_negative: bool) -> &'static str {
        match (is_negative, self.sign) {
            (true, _) => "-",
            (false, Some('+')) => "+",
            (false, Some(' ')) => " ",
            (false, _) => "",
        }
    }

    fn grouped(&self, digits: &str) -> Outcome<String> {
        let Some(separator) = self.grouping else { return Ok(digits.to_owned()) };
        if self.align == Some('=') && self.width > 0 {
            return refused("a format with grouping and padding after the sign");
        }
        let end = digits.find(|digit: char| !digit.is_ascii_digit()).unwrap_or(digits.len());
        let mut grouped = String::new();
        for (index, digit) in digits[..end].chars().enumerate() {
            if index > 0 && (end - index).is_multiple_of(3) {
                grouped.push(separator);
            }
            grouped.push(digit);
        }
        Ok(grouped + &digits[end..])
    }
}

fn number(rest: &mut &str) -> Outcome<Option<usize>> {
    let end = rest.find(|digit: char| !digit.is_ascii_digit()).unwrap_or(rest.len());
    let (digits, after) = rest.split_at(end);
    *rest = after;
    match digits.parse() {
        _ if digits.is_empty() => Ok(None),
        Ok(number) => Ok(Some(number)),
        Err(_) => value_error("too many digits in a format"),
    }
}

/// `format(value, spec)`.
fn formatted(value: &Val<'_>, spec: &str, meter: &Meter) -> Outcome<String> {
    if spec.is_empty() {
        return Ok(to_str(value, meter)?.to_string());
    }
    let spec = Spec::parse(spec)?;
    let float_kind = spec.kind.is_some_and(|kind| "eEfFgG%".contains(kind));
    match value {
        Val::Str(text) => match spec {
            Spec { sign: None, alternate: false, grouping: None, kind: None | Some('s'), .. }
                if spec.align != Some('=') =>
            {
                let text: String = text.chars().take(spec.precision.unwrap_or(usize::MAX)).collect();
                spec.padded("", &text, '<', meter)
            }
            _ => value_error("invalid format specifier for a text"),
        },
        Val::Float(value) => format_float(*value, &spec, meter),
        other => match (other.as_int(), other) {
            (Some(int), _) if float_kind => format_float(int as f64, &spec, meter),
            (Some(int), Val::Int(_)) => format_int(int, &spec, meter),
            (Some(_), _) => refused("a format of a boolean"),
            _ => type_error(format!("unsupported format string passed to {}.__format__", other.type_name())),
        },
    }
}

fn format_int(value: i128, spec: &Spec, meter: &Meter) -> Outcome<String> {
    if spec.precision.is_some() {
        return value_error("precision not allowed in integer format specifier");
    }
    let magnitude = value.unsigned_abs();
    let (prefix, digits) = match spec.kind {
        None | Some('d') => ("", spec.grouped(&magnitude.to_string())?),
        Some('x') => ("0x", format!("{magnitude:x}")),
        Some('X') => ("0X", format!("{magnitude:X}")),
        Some('o') => ("0o", format!("{magnitude:o}")),
        Some('b') => ("0b", format!("{magnitude:b}")),
        Some(kind) => return refused(format_args!("the format `{kind}` of a whole number")),
    };
    if spec.grouping.is_some() && !prefix.is_empty() {
        return refused("a format with grouping of hexadecimal, octal or binary numbers");
    }
    let sign = spec.sign_of(value < 0).to_owned() + if spec.alternate { prefix } else { "" };
    spec.padded(&sign, &digits, '>', meter)
}

fn format_float(value: f64, spec: &Spec, meter: &Meter) -> Outcome<String> {
    let digits = match (spec.kind, spec.precision) {
        (None, None) => float_repr(value.abs()),
        (None, Some(_)) => return refused("a format of a float with a precision and no type"),
        (Some('%'), precision) => number_text(value.abs() * 100.0, 'f', precision, spec.alternate)? + "%",
        (Some(kind), precision) => number_text(value.abs(), kind, precision, spec.alternate)?,
    };
    let is_negative = value.is_sign_negative() && !value.is_nan();
    spec.padded(spec.sign_of(is_negative), &spec.grouped(&digits)?, '>', meter)
}

/// The digits of a positive float as `%e`, `%f` or `%g` write them.
pub(super) fn number_text(
    value: f64,
    kind: char,
    precision: Option<usize>,
    alternate: bool,
) -> Outcome<String> {
    let precision = precision.unwrap_or(6);
    if precision > MAX_PRECISION {
        return refused(format_args!("a precision over {MAX_PRECISION}"));
    }
    let upper = kind.is_ascii_uppercase();
    if !value.is_finite() {
        let text = if value.is_nan() { "nan" } else { "inf" };
        return Ok(if upper { text.to_uppercase() } else { text.into() });
    }
    let text = match kind.to_ascii_lowercase() {
        'f' => format!("{value:.precision$}"),
        'e' => exponential(value, precision),
        'g' => {
            let precision = precision.max(1);
            let text = format!("{value:.*e}", precision - 1);
            let exponent: i64 =
                text.split_once('e').and_then(|(_, exponent)| exponent.parse().ok()).unwrap_or(0);
            let limit = i64::try_from(precision).expect("checked above");
            if (-4..limit).contains(&exponent) {
                let decimals = usize::try_from(limit - 1 - exponent).expect("not negative");
                trimmed(&format!("{value:.decimals$}"), alternate)
            } else {
                let text = exponential(value, precision - 1);
                let (digits, exponent) = text.split_once('e').expect("written with an exponent");
                format!("{}e{exponent}", trimmed(digits, alternate))
            }
        }
        other => return value_error(format!("unknown format code '{other}' for a float")),
    };
    if alternate && !text.contains('.') {
        return refused("the flag `#` of a float without digits behind the point");
    }
    Ok(if upper { text.to_uppercase() } else { text })
}

/// Without zeros at the end of the fraction.
fn trimmed(digits: &str, alternate: bool) -> String {
    if alternate || !digits.contains('.') {
        return digits.to_owned();
    }
    digits.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn exponential(value: f64, precision: usize) -> String {
    let text = format!("{value:.precision$e}");
    let (digits, exponent) = text.split_once('e').expect("written with an exponent");
    let exponent: i32 = exponent.parse().expect("an exponent");
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// `text.format(…)`.
pub(super) fn format<'t>(renderer: &mut Renderer<'t, '_>, text: &str, args: &Args<'t>) -> Outcome<String> {
    let mut out = String::new();
    let mut rest = text;
    let mut automatic = 0;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            out.push_str(brace);
            rest = after;
            continue;
        }
        let end = rest.find(['{', '}']);
        let Some(end) = end.filter(|_| brace == "{") else {
            return value_error("single brace encountered in format string");
        };
        if rest[end..].starts_with('{') {
            return refused("a replacement field inside of another");
        }
        let text = field(renderer, &rest[..end], args, &mut automatic)?;
        renderer.meter.text(text.len())?;
        out.push_str(&text);
        renderer.meter.size(out.len())?;
        rest = &rest[end + 1..];
    }
    out.push_str(rest);
    renderer.meter.text(out.len())?;
    Ok(out)
}

/// `name!conversion:spec` between braces.
fn field<'t>(
    renderer: &mut Renderer<'t, '_>,
    field: &str,
    args: &Args<'t>,
    automatic: &mut usize,
) -> Outcome<String> {
    let (name, spec) = field.split_once(':').unwrap_or((field, ""));
    let (name, conversion) = name.split_once('!').map_or((name, None), |(name, kind)| (name, Some(kind)));
    let end = name.find(['.', '[']).unwrap_or(name.len());
    let (first, mut path) = name.split_at(end);
    let mut value = if first.is_empty() || first.bytes().all(|digit| digit.is_ascii_digit()) {
        let place = if first.is_empty() {
            *automatic += 1;
            *automatic - 1
        } else {
            first.parse().unwrap_or(usize::MAX)
        };
        match args.positional.get(place) {
            Some(value) => value.clone(),
            None => {
                return raised(format!("replacement index {place} out of range for positional args tuple"));
            }
        }
    } else {
        match args.named.iter().find(|(name, _)| &**name == first) {
            Some((_, value)) => value.clone(),
            None => return raised(format!("KeyError: '{first}'")),
        }
    };
    while !path.is_empty() {
        let is_item = path.starts_with('[');
        let end = if is_item {
            path.find(']').map(|end| end + 1)
        } else {
            path[1..].find(['.', '[']).map(|end| end + 1)
        };
        let (part, after) = path.split_at(end.unwrap_or(path.len()));
        path = after;
        let part = if is_item { part[1..].trim_end_matches(']') } else { &part[1..] };
        value = if is_item {
            let index = match part.parse() {
                Ok(index) => Val::Int(index),
                Err(_) => Val::text(part),
            };
            renderer.item(&value, &index)?
        } else {
            renderer.attribute(&value, Str::Shared(part.into()))?
        };
    }
    match conversion {
        None => formatted(&value, spec, renderer.meter),
        Some("s") => formatted(&Val::Str(to_str(&value, renderer.meter)?), spec, renderer.meter),
        Some("r") => {
            let mut text = String::new();
            write_repr(&mut text, &value, renderer.meter)?;
            formatted(&Val::text(text), spec, renderer.meter)
        }
        Some(other) => refused(format_args!("the conversion `!{other}`")),
    }
}

/// A number for a format that takes floats.
pub(super) fn float_of(value: &Val<'_>) -> Outcome<f64> {
    match as_float(value) {
        Some(value) => Ok(value),
        None => type_error(format!("must be real number, not {}", value.type_name())),
    }
}
