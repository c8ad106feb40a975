//! Python's operators.

use std::cmp::Ordering;
use std::rc::Rc;

use super::ast::{Binary, Comparison};
use super::limits::{Failure, Kind, Meter, Outcome, raised, refused, type_error, value_error};
use super::printing::to_str;
use super::value::{Key, Steps, Str, Undefined, Val, ViewKind, whole};
use super::{iterate, percent};

/// The exception that using an undefined value raises.
pub(super) fn undefined_error<T>(undefined: &Undefined<'_>) -> Outcome<T> {
    raised(match undefined {
        Undefined::Name(name) => format!("'{name}' is undefined"),
        Undefined::Attribute(kind, name) => format!("'{kind} object' has no attribute '{}'", &**name),
        Undefined::Unsafe(kind, name) => {
            format!("access to attribute '{}' of '{kind}' object is unsafe", &**name)
        }
        Undefined::Hint(hint) => (*hint).to_owned(),
    })
}

pub(super) fn binary<'t>(
    operator: Binary,
    left: &Val<'t>,
    right: &Val<'t>,
    meter: &Meter,
) -> Outcome<Val<'t>> {
    // A text on the left takes an undefined value on the right of `%` as it takes any other.
    let formats = operator == Binary::Mod && matches!(left, Val::Str(_));
    if let Val::Undefined(undefined) = left {
        return undefined_error(undefined);
    }
    if let (Val::Undefined(undefined), false) = (right, formats) {
        return undefined_error(undefined);
    }
    match operator {
        Binary::Add => add(left, right, meter),
        Binary::Mul => multiply(left, right, meter),
        Binary::Mod if left.as_str().is_some() => match left {
            Val::Str(format) => percent::format(format, right, meter).map(Val::text),
            _ => refused("`%` of markup"),
        },
        _ => arithmetic(operator, left, right),
    }
}

fn unsupported<T>(operator: Binary, left: &Val<'_>, right: &Val<'_>) -> Outcome<T> {
    let sign = match operator {
        Binary::Add => "+",
        Binary::Sub => "-",
        Binary::Mul => "*",
        Binary::Div => "/",
        Binary::FloorDiv => "//",
        Binary::Mod => "%",
        Binary::Pow => "**",
    };
    if let (Binary::Sub, Val::View(..), _) | (Binary::Sub, _, Val::View(..)) = (operator, left, right) {
        return refused("`-` of the keys of a dictionary");
    }
    let (left, right) = (left.type_name(), right.type_name());
    type_error(format!("unsupported operand type(s) for {sign}: '{left}' and '{right}'"))
}

fn add<'t>(left: &Val<'t>, right: &Val<'t>, meter: &Meter) -> Outcome<Val<'t>> {
    match (left, right) {
        (Val::Str(left), Val::Str(right)) => {
            meter.text(left.len() + right.len())?;
            Ok(Val::text([&**left, &**right].concat()))
        }
        (Val::Markup(_), Val::Str(_) | Val::Markup(_)) | (Val::Str(_), Val::Markup(_)) => {
            let (left, right) = (escape(left, meter)?, escape(right, meter)?);
            meter.text(left.len() + right.len())?;
            Ok(Val::Markup(Str::Shared([&*left, &*right].concat().into())))
        }
        (Val::List(left), Val::List(right)) => Val::list(joined(&left.items, &right.items, meter)?),
        (Val::Tuple(left), Val::Tuple(right)) => Val::tuple(joined(&left.items, &right.items, meter)?),
        (Val::Str(_) | Val::Markup(_), other) => {
            type_error(format!("can only concatenate str (not \"{}\") to str", other.type_name()))
        }
        _ => arithmetic(Binary::Add, left, right),
    }
}

fn joined<'t>(left: &[Val<'t>], right: &[Val<'t>], meter: &Meter) -> Outcome<Vec<Val<'t>>> {
    meter.steps(left.len() + right.len())?;
    Ok([left, right].concat())
}

fn multiply<'t>(left: &Val<'t>, right: &Val<'t>, meter: &Meter) -> Outcome<Val<'t>> {
    let is_sequence = |value: &Val<'_>| value.as_str().is_some() || value.items().is_some();
    let (sequence, count) = match (is_sequence(left), is_sequence(right)) {
        (true, false) => (left, right),
        (false, true) => (right, left),
        (false, false) => return arithmetic(Binary::Mul, left, right),
        (true, true) => {
            return type_error(format!("can't multiply sequence by non-int of type '{}'", right.type_name()));
        }
    };
    let Some(count) = count.as_int() else {
        return type_error(format!("can't multiply sequence by non-int of type '{}'", count.type_name()));
    };
    let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
    if let Some(text) = sequence.as_str() {
        meter.text(text.len().saturating_mul(count))?;
        let text = Str::Shared(text.repeat(count).into());
        return Ok(if matches!(sequence, Val::Markup(_)) { Val::Markup(text) } else { Val::Str(text) });
    }
    let items = sequence.items().expect("a list or a tuple");
    meter.steps(items.len().saturating_mul(count))?;
    if items.len().saturating_mul(count) > 1 << 24 {
        return Err(Failure::new(Kind::Limit, "expected a list of at most 16,777,216 items, found more"));
    }
    let items = std::iter::repeat_n(items, count).flatten().cloned().collect();
    if matches!(sequence, Val::List(_)) { Val::list(items) } else { Val::tuple(items) }
}

/// `& < > ' "` of a text as markupsafe escapes them; markup stays.
pub(super) fn escape<'t>(value: &Val<'t>, meter: &Meter) -> Outcome<Str<'t>> {
    let text = to_str(value, meter)?;
    if matches!(value, Val::Markup(_)) || !text.contains(['&', '<', '>', '\'', '"']) {
        return Ok(text);
    }
    meter.text(text.len() * 5)?;
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    Ok(Str::Shared(escaped.replace('\'', "&#39;").replace('"', "&#34;").into()))
}

fn arithmetic<'t>(operator: Binary, left: &Val<'t>, right: &Val<'t>) -> Outcome<Val<'t>> {
    match (left.as_int(), right.as_int()) {
        (Some(left), Some(right)) => return integers(operator, left, right),
        _ if left.as_int().is_some() || right.as_int().is_some() || matches!(left, Val::Float(_)) => {}
        _ => return unsupported(operator, left, right),
    }
    match (as_float(left), as_float(right)) {
        (Some(left), Some(right)) => floats(operator, left, right),
        _ => unsupported(operator, left, right),
    }
}

/// A number as a float.
pub(super) fn as_float(value: &Val<'_>) -> Option<f64> {
    match value {
        Val::Float(value) => Some(*value),
        other => other.as_int().map(|value| value as f64),
    }
}

/// Whole numbers up to here are floats without rounding.
const EXACT: u128 = 1 << 53;

fn integers<'t>(operator: Binary, left: i128, right: i128) -> Outcome<Val<'t>> {
    let divides = matches!(operator, Binary::Div | Binary::FloorDiv | Binary::Mod);
    if divides && right == 0 {
        return raised("division by zero");
    }
    let result = match operator {
        Binary::Add => left.checked_add(right),
        Binary::Sub => left.checked_sub(right),
        Binary::Mul => left.checked_mul(right),
        Binary::FloorDiv => left.checked_div_euclid(right).map(|quotient| {
            let exact = left.rem_euclid(right) == 0;
            if right < 0 && !exact { quotient - 1 } else { quotient }
        }),
        Binary::Mod => left
            .checked_rem_euclid(right)
            .map(|rest| if right < 0 && rest != 0 { rest + right } else { rest }),
        Binary::Pow if right >= 0 => match (left, right) {
            (0 | 1, _) => Some(if right == 0 { 1 } else { left }),
            (-1, _) => Some(if right % 2 == 0 { 1 } else { -1 }),
            _ => u32::try_from(right).ok().and_then(|right| left.checked_pow(right)),
        },
        Binary::Pow => return floats(operator, left as f64, right as f64),
        Binary::Div => {
            if left.unsigned_abs() > EXACT || right.unsigned_abs() > EXACT {
                return refused("`/` of whole numbers beyond 2^53");
            }
            return Ok(Val::Float(left as f64 / right as f64));
        }
    };
    result.map_or_else(|| refused("a whole number beyond 128 bits"), |result| Ok(Val::Int(result)))
}

fn floats<'t>(operator: Binary, left: f64, right: f64) -> Outcome<Val<'t>> {
    let divides = matches!(operator, Binary::Div | Binary::FloorDiv | Binary::Mod);
    if divides && right == 0.0 {
        return raised("float division by zero");
    }
    // As `float_divmod` of CPython computes both.
    let rest = || {
        let rest = left % right;
        match rest {
            0.0 => 0f64.copysign(right),
            rest if (right < 0.0) == (rest < 0.0) => rest,
            rest => rest + right,
        }
    };
    Ok(Val::Float(match operator {
        Binary::Add => left + right,
        Binary::Sub => left - right,
        Binary::Mul => left * right,
        Binary::Div => left / right,
        Binary::Mod => rest(),
        Binary::FloorDiv => {
            let quotient = (left - rest()) / right;
            let floor = quotient.floor();
            if quotient - floor > 0.5 { floor + 1.0 } else { floor }
        }
        Binary::Pow if left == 0.0 && right < 0.0 => {
            return raised("0.0 cannot be raised to a negative power");
        }
        Binary::Pow if left < 0.0 && right.fract() != 0.0 => return refused("a complex number"),
        Binary::Pow => left.powf(right),
    }))
}

pub(super) fn negative<'t>(value: &Val<'t>, sign: i128) -> Outcome<Val<'t>> {
    match value {
        Val::Undefined(undefined) => undefined_error(undefined),
        Val::Float(value) => Ok(Val::Float(if sign < 0 { -*value } else { *value })),
        other => match other.as_int() {
            Some(value) => integers(Binary::Mul, value, sign),
            None => type_error(format!("bad operand type for unary operator: '{}'", other.type_name())),
        },
    }
}

pub(super) fn compare<'t>(
    comparison: Comparison,
    left: &Val<'t>,
    right: &Val<'t>,
    meter: &Meter,
) -> Outcome<bool> {
    match comparison {
        Comparison::Equal => equal(left, right, meter),
        Comparison::NotEqual => equal(left, right, meter).map(|equal| !equal),
        Comparison::In => contains(right, left, meter),
        Comparison::NotIn => contains(right, left, meter).map(|contains| !contains),
        Comparison::Less => ordered(left, right, meter).map(|order| order == Some(Ordering::Less)),
        Comparison::LessEqual => ordered(left, right, meter).map(|order| order.is_some_and(Ordering::is_le)),
        Comparison::Greater => ordered(left, right, meter).map(|order| order == Some(Ordering::Greater)),
        Comparison::GreaterEqual => {
            ordered(left, right, meter).map(|order| order.is_some_and(Ordering::is_ge))
        }
    }
}

/// Python's `==`.
pub(super) fn equal<'t>(left: &Val<'t>, right: &Val<'t>, meter: &Meter) -> Outcome<bool> {
    meter.steps(1)?;
    Ok(match (left, right) {
        (Val::Str(left) | Val::Markup(left), Val::Str(right) | Val::Markup(right)) => {
            meter.text(left.len().min(right.len()))?;
            **left == **right
        }
        (Val::None, Val::None) | (Val::Undefined(_), Val::Undefined(_)) => true,
        (Val::List(left), Val::List(right)) | (Val::Tuple(left), Val::Tuple(right)) => {
            if left.items.len() != right.items.len() {
                return Ok(false);
            }
            for (left, right) in left.items.iter().zip(&right.items) {
                if !equal(left, right, meter)? {
                    return Ok(false);
                }
            }
            true
        }
        (Val::Dict(left), Val::Dict(right)) => {
            if left.entries.len() != right.entries.len() {
                return Ok(false);
            }
            for (key, value) in &left.entries {
                match right.get(key) {
                    Some(other) if equal(value, other, meter)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (Val::Range(left), Val::Range(right)) => equal_ranges(left, right),
        (Val::View(..), Val::View(..)) => return refused("`==` of two views of dictionaries"),
        (Val::Namespace(left), Val::Namespace(right))
        | (Val::Loop(left), Val::Loop(right))
        | (Val::Macro(left), Val::Macro(right))
        | (Val::Cycler(left), Val::Cycler(right))
        | (Val::Joiner(left), Val::Joiner(right)) => left == right,
        (Val::Iter(left), Val::Iter(right)) => Rc::ptr_eq(left, right),
        (Val::Function(left), Val::Function(right)) => left == right,
        (left, right) => numbers_order(left, right) == Some(Some(Ordering::Equal)),
    })
}

fn equal_ranges(left: &Steps, right: &Steps) -> bool {
    let length = left.len();
    length == right.len()
        && (length == 0 || left.start == right.start && (length == 1 || left.step == right.step))
}

/// How two numbers are ordered; `None` where one is no number.
fn numbers_order(left: &Val<'_>, right: &Val<'_>) -> Option<Option<Ordering>> {
    Some(match (left.as_int(), right.as_int()) {
        (Some(left), Some(right)) => Some(left.cmp(&right)),
        (None, None) => as_float(left)?.partial_cmp(&as_float(right)?),
        (Some(left), None) => int_float_order(left, as_float(right)?),
        (None, Some(right)) => int_float_order(right, as_float(left)?).map(Ordering::reverse),
    })
}

/// Exactly, as Python compares them.
fn int_float_order(int: i128, float: f64) -> Option<Ordering> {
    if float.is_nan() {
        return None;
    }
    match whole(float.trunc()) {
        Some(truncated) => {
            Some(int.cmp(&truncated).then_with(|| 0.0.partial_cmp(&float.fract()).unwrap_or(Ordering::Equal)))
        }
        None => Some(if float > 0.0 { Ordering::Less } else { Ordering::Greater }),
    }
}

/// Python's `<`, `>` and the like; `None` with a NaN.
pub(super) fn ordered<'t>(left: &Val<'t>, right: &Val<'t>, meter: &Meter) -> Outcome<Option<Ordering>> {
    meter.steps(1)?;
    match (left, right) {
        (Val::Undefined(undefined), _) | (_, Val::Undefined(undefined)) => undefined_error(undefined),
        (Val::Str(left) | Val::Markup(left), Val::Str(right) | Val::Markup(right)) => {
            meter.text(left.len().min(right.len()))?;
            Ok(Some((**left).cmp(&**right)))
        }
        (Val::List(left), Val::List(right)) | (Val::Tuple(left), Val::Tuple(right)) => {
            for (left, right) in left.items.iter().zip(&right.items) {
                if !equal(left, right, meter)? {
                    return ordered(left, right, meter);
                }
            }
            Ok(Some(left.items.len().cmp(&right.items.len())))
        }
        (Val::View(..), Val::View(..)) => refused("an order of views of dictionaries"),
        _ => match numbers_order(left, right) {
            Some(order) => Ok(order),
            None => type_error(format!(
                "'<' not supported between instances of '{}' and '{}'",
                left.type_name(),
                right.type_name()
            )),
        },
    }
}

/// Python's `item in container`.
pub(super) fn contains<'t>(container: &Val<'t>, item: &Val<'t>, meter: &Meter) -> Outcome<bool> {
    match container {
        Val::Str(text) | Val::Markup(text) => {
            let Some(part) = item.as_str() else {
                let found = item.type_name();
                return type_error(format!("'in <string>' requires string as left operand, not {found}"));
            };
            meter.text(text.len())?;
            Ok(text.contains(part))
        }
        Val::Dict(dict) | Val::View(ViewKind::Keys, dict) => {
            if item.is_undefined() {
                return Ok(false);
            }
            item.check_hashable(meter)?;
            if dict.entries.len() > 8 {
                return Ok(dict.get(item).is_some());
            }
            Ok(dict.entries.iter().any(|(key, _)| Key(key.clone()) == Key(item.clone())))
        }
        Val::Range(steps) => Ok(match item.as_int().or_else(|| as_float(item).and_then(whole)) {
            Some(int) => {
                let (low, high) = if steps.step > 0 {
                    (steps.start, steps.stop - 1)
                } else {
                    (steps.stop + 1, steps.start)
                };
                (low..=high).contains(&int) && (int - steps.start) % steps.step == 0
            }
            None => false,
        }),
        Val::Undefined(_) => Ok(false),
        other => {
            let mut items = match iterate::items(other) {
                Ok(items) => items,
                Err(_) => {
                    let found = other.type_name();
                    return type_error(format!("argument of type '{found}' is not iterable"));
                }
            };
            while let Some(candidate) = items.next(meter)? {
                if equal(&candidate, item, meter)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
    }
}

/// Three bounds of a slice.
pub(super) type Bounds = [Option<i128>; 3];

/// The places that a slice of so many items takes.
fn slice_places(bounds: Bounds, length: usize) -> Outcome<impl Iterator<Item = usize>> {
    let length = i128::try_from(length).expect("a length fits 128 bits");
    let step = bounds[2].unwrap_or(1);
    if step == 0 {
        return value_error("slice step cannot be zero");
    }
    let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let clamp = |bound: i128| (if bound < 0 { bound.saturating_add(length) } else { bound }).clamp(low, high);
    let start = bounds[0].map_or(if step > 0 { low } else { high }, clamp);
    let stop = bounds[1].map_or(if step > 0 { high } else { low }, clamp);
    let places = Steps { start, stop, step };
    Ok((0..places.len()).map(move |index| usize::try_from(start + index * step).expect("inside of the list")))
}

/// `value[start:stop:step]`
pub(super) fn slice<'t>(value: &Val<'t>, bounds: Bounds, meter: &Meter) -> Outcome<Val<'t>> {
    Ok(match value {
        Val::Str(text) => Val::Str(slice_text(text, bounds, meter)?),
        Val::Markup(text) => Val::Markup(slice_text(text, bounds, meter)?),
        Val::List(seq) | Val::Tuple(seq) => {
            meter.steps(seq.items.len())?;
            let items =
                slice_places(bounds, seq.items.len())?.map(|place| seq.items[place].clone()).collect();
            if matches!(value, Val::List(_)) { Val::list(items)? } else { Val::tuple(items)? }
        }
        Val::Range(_) => return refused("a slice of a range"),
        other => return type_error(format!("'{}' object is not subscriptable", other.type_name())),
    })
}

fn slice_text<'t>(text: &Str<'t>, bounds: Bounds, meter: &Meter) -> Outcome<Str<'t>> {
    meter.text(text.len())?;
    if let ([start, stop, None | Some(1)], true) = (bounds, text.is_ascii()) {
        let length = i128::try_from(text.len()).expect("a length fits 128 bits");
        let clamp =
            |bound: i128| (if bound < 0 { bound.saturating_add(length) } else { bound }).clamp(0, length);
        let place = |bound: i128| usize::try_from(clamp(bound)).expect("inside of the text");
        let (start, stop) = (start.map_or(0, place), stop.map_or(text.len(), place));
        return Ok(part(text, start..stop.max(start)));
    }
    let characters: Vec<char> = text.chars().collect();
    let chosen: String = slice_places(bounds, characters.len())?.map(|place| characters[place]).collect();
    Ok(Str::Shared(chosen.into()))
}

/// A part of a text, in bytes; a text of the row is not copied.
pub(super) fn part<'t>(text: &Str<'t>, range: std::ops::Range<usize>) -> Str<'t> {
    match text {
        Str::Borrowed(text) => Str::Borrowed(&text[range]),
        Str::Shared(text) => Str::Shared(text[range].into()),
    }
}
