//! Jinja2's tests: what stands behind `is`.

use super::ast::Comparison;
use super::calls::Args;
use super::cases::{is_lower, is_upper};
use super::filters;
use super::iterate;
use super::limits::{Meter, Outcome, raised, refused, type_error};
use super::operators::{binary, compare, equal};
use super::printing::to_str;
use super::value::Val;
use super::{ast::Binary, parser::unknown};

const NAMES: [&str; 39] = [
    "odd",
    "even",
    "divisibleby",
    "defined",
    "undefined",
    "filter",
    "test",
    "none",
    "boolean",
    "false",
    "true",
    "integer",
    "float",
    "lower",
    "upper",
    "string",
    "mapping",
    "number",
    "sequence",
    "iterable",
    "callable",
    "sameas",
    "escaped",
    "in",
    "==",
    "eq",
    "equalto",
    "!=",
    "ne",
    ">",
    "gt",
    "greaterthan",
    ">=",
    "ge",
    "<",
    "lt",
    "lessthan",
    "<=",
    "le",
];

pub(super) fn known(name: &str) -> bool {
    NAMES.contains(&name)
}

/// `value is name(args)`.
pub(super) fn check<'t>(name: &str, value: &Val<'t>, args: Args<'t>, meter: &Meter) -> Outcome<bool> {
    meter.steps(1)?;
    if let Some(comparison) = comparison(name) {
        let [other] = args.bind(name, ["other"], 1)?;
        let other = other.expect("required");
        return compare(comparison, value, &other, meter);
    }
    match name {
        "divisibleby" => {
            let [by] = args.bind(name, ["num"], 1)?;
            return rest_is(value, &by.expect("required"), 0, meter);
        }
        "sameas" => {
            let [other] = args.bind(name, ["other"], 1)?;
            return same(value, &other.expect("required"));
        }
        "in" => {
            let [container] = args.bind(name, ["seq"], 1)?;
            return compare(Comparison::In, value, &container.expect("required"), meter);
        }
        _ if !known(name) => return raised(unknown("test", name)),
        _ => {}
    }
    let [] = args.bind(name, [], 0)?;
    Ok(match name {
        "odd" => rest_is(value, &Val::Int(2), 1, meter)?,
        "even" => rest_is(value, &Val::Int(2), 0, meter)?,
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "none" => matches!(value, Val::None),
        "boolean" => matches!(value, Val::Bool(_)),
        "true" => matches!(value, Val::Bool(true)),
        "false" => matches!(value, Val::Bool(false)),
        "integer" => matches!(value, Val::Int(_)),
        "float" => matches!(value, Val::Float(_)),
        "number" => matches!(value, Val::Int(_) | Val::Float(_) | Val::Bool(_)),
        "string" => value.as_str().is_some(),
        "mapping" => matches!(value, Val::Dict(_)),
        "sequence" => {
            let is_text = value.as_str().is_some() || value.is_undefined();
            is_text || matches!(value, Val::List(_) | Val::Tuple(_) | Val::Dict(_) | Val::Range(_))
        }
        "iterable" => matches!(value, Val::Loop(_)) || iterate::items(value).is_ok(),
        "callable" => {
            let is_function = matches!(value, Val::Function(_) | Val::Macro(_) | Val::Method(_));
            is_function || matches!(value, Val::Joiner(_) | Val::Loop(_) | Val::Undefined(_))
        }
        "escaped" => matches!(value, Val::Markup(_)),
        "lower" => is_lower(&to_str(value, meter)?),
        "upper" => is_upper(&to_str(value, meter)?),
        "filter" | "test" => is_name(name, value)?,
        other => return raised(unknown("test", other)),
    })
}

fn comparison(name: &str) -> Option<Comparison> {
    Some(match name {
        "==" | "eq" | "equalto" => Comparison::Equal,
        "!=" | "ne" => Comparison::NotEqual,
        ">" | "gt" | "greaterthan" => Comparison::Greater,
        ">=" | "ge" => Comparison::GreaterEqual,
        "<" | "lt" | "lessthan" => Comparison::Less,
        "<=" | "le" => Comparison::LessEqual,
        _ => return None,
    })
}

/// Whether Jinja2 has a filter or a test of this name.
fn is_name(kind: &str, name: &Val<'_>) -> Outcome<bool> {
    let Some(name) = name.as_str() else { return type_error("expected the name as a text") };
    Ok(if kind == "test" { known(name) } else { filters::known(name) || filters::refused_name(name) })
}

/// `value % by == rest`.
fn rest_is<'t>(value: &Val<'t>, by: &Val<'t>, rest: i128, meter: &Meter) -> Outcome<bool> {
    equal(&binary(Binary::Mod, value, by, meter)?, &Val::Int(rest), meter)
}

/// Python's `is`, where it does not hang on how CPython keeps values.
fn same(value: &Val<'_>, other: &Val<'_>) -> Outcome<bool> {
    let single = |value: &Val<'_>| matches!(value, Val::None | Val::Bool(_));
    match (value, other) {
        (Val::None, Val::None) => Ok(true),
        (Val::Bool(value), Val::Bool(other)) => Ok(value == other),
        _ if single(value) || single(other) || value.type_name() != other.type_name() => Ok(false),
        _ => refused(format_args!("`is sameas` of two values of type `{}`", value.type_name())),
    }
}
