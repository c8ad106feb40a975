//! Attributes and methods of Python's types.

use super::calls::{Args, int_of};
use super::iterate;
use super::limits::{Outcome, refused, type_error, value_error};
use super::operators::equal;
use super::render::Renderer;
use super::strings;
use super::value::{Val, ViewKind, whole};

/// What an attribute of a type is.
pub(super) enum Found {
    Method(&'static str),
    /// What the sandbox takes for undefined: it changes the value.
    Unsafe,
    /// Python has it, we do not.
    Refused,
    Nothing,
}

const LIST: [&str; 3] = ["count", "index", "copy"];
const LIST_UNSAFE: [&str; 8] = ["append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove"];
const DICT: [&str; 5] = ["get", "items", "keys", "values", "copy"];
const DICT_UNSAFE: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];
const INT_REFUSED: [&str; 9] = [
    "imag",
    "numerator",
    "denominator",
    "bit_length",
    "bit_count",
    "conjugate",
    "to_bytes",
    "from_bytes",
    "as_integer_ratio",
];
const FLOAT_REFUSED: [&str; 5] = ["imag", "conjugate", "as_integer_ratio", "hex", "fromhex"];

/// Whether dictionaries have an attribute of this name, which then hides their key.
pub(super) fn of_dict(name: &str) -> bool {
    DICT.contains(&name) || DICT_UNSAFE.contains(&name) || name == "fromkeys" || is_internal(name)
}

/// Whether Python's objects have an attribute of this name that the sandbox hides.
pub(super) fn is_internal(name: &str) -> bool {
    const INTERNAL: [&str; 30] = [
        "__class__",
        "__class_getitem__",
        "__contains__",
        "__delattr__",
        "__delitem__",
        "__dir__",
        "__doc__",
        "__eq__",
        "__format__",
        "__ge__",
        "__getattribute__",
        "__getitem__",
        "__getstate__",
        "__gt__",
        "__hash__",
        "__init__",
        "__init_subclass__",
        "__iter__",
        "__le__",
        "__len__",
        "__lt__",
        "__ne__",
        "__new__",
        "__reduce__",
        "__reduce_ex__",
        "__repr__",
        "__setattr__",
        "__sizeof__",
        "__str__",
        "__subclasshook__",
    ];
    name.starts_with("__") && INTERNAL.contains(&name)
}

fn one_of(name: &str, methods: &[&'static str]) -> Option<Found> {
    methods.iter().find(|method| **method == name).map(|method| Found::Method(method))
}

/// The attribute of Python's type that a value has.
pub(super) fn method(value: &Val<'_>, name: &str) -> Found {
    let found = match value {
        Val::Str(_) | Val::Markup(_) => strings::method(name),
        Val::List(_) if LIST_UNSAFE.contains(&name) => Some(Found::Unsafe),
        Val::List(_) => one_of(name, &LIST),
        Val::Tuple(_) => one_of(name, &["count", "index"]),
        Val::Dict(_) if DICT_UNSAFE.contains(&name) => Some(Found::Unsafe),
        Val::Dict(_) if name == "fromkeys" => Some(Found::Refused),
        Val::Dict(_) => one_of(name, &DICT),
        Val::Range(_) => {
            ["start", "stop", "step", "count", "index"].contains(&name).then_some(Found::Refused)
        }
        Val::View(..) => ["mapping", "isdisjoint"].contains(&name).then_some(Found::Refused),
        Val::Bool(_) | Val::Int(_) => INT_REFUSED.contains(&name).then_some(Found::Refused),
        Val::Float(_) if name == "is_integer" => Some(Found::Method("is_integer")),
        Val::Float(_) => FLOAT_REFUSED.contains(&name).then_some(Found::Refused),
        Val::Cycler(_) => one_of(name, &["next", "reset"]),
        Val::Macro(_) => ["arguments", "catch_kwargs", "catch_varargs", "caller", "explicit_caller"]
            .contains(&name)
            .then_some(Found::Refused),
        Val::Function(super::value::Function::Dict) if name == "fromkeys" => Some(Found::Method("fromkeys")),
        Val::Iter(_) | Val::Function(_) | Val::Method(_) | Val::Joiner(_) => Some(Found::Refused),
        _ => None,
    };
    found.unwrap_or(Found::Nothing)
}

impl<'t> Renderer<'t, '_> {
    pub(super) fn call_method(
        &mut self,
        receiver: &Val<'t>,
        name: &'static str,
        args: Args<'t>,
    ) -> Outcome<Val<'t>> {
        match receiver {
            Val::Str(_) | Val::Markup(_) => self.call_text_method(receiver, name, args),
            Val::List(seq) | Val::Tuple(seq) if name == "copy" => {
                let [] = args.places("copy", 0)?;
                self.meter.steps(seq.items.len())?;
                Ok(receiver.clone())
            }
            Val::List(seq) | Val::Tuple(seq) => self.search(&seq.items, name, args),
            Val::Dict(dict) => match name {
                "get" => {
                    let [key, default] = args.places("get", 1)?;
                    let key = key.expect("required");
                    key.check_hashable(self.meter)?;
                    Ok(dict.get(&key).cloned().or(default).unwrap_or(Val::None))
                }
                _ => {
                    let [] = args.places(name, 0)?;
                    Ok(match name {
                        "items" => Val::View(ViewKind::Items, dict.clone()),
                        "keys" => Val::View(ViewKind::Keys, dict.clone()),
                        "values" => Val::View(ViewKind::Values, dict.clone()),
                        _ => receiver.clone(),
                    })
                }
            },
            Val::Float(value) => {
                let [] = args.places("is_integer", 0)?;
                Ok(Val::Bool(whole(*value).is_some() || value.is_finite() && value.abs() >= 1e38))
            }
            Val::Cycler(cycler) => {
                let [] = args.places(name, 0)?;
                let (items, at) = &mut self.cyclers[*cycler];
                if name == "reset" {
                    *at = 0;
                    return Ok(Val::None);
                }
                let current = items[*at].clone();
                *at = (*at + 1) % items.len();
                Ok(current)
            }
            Val::Loop(state) => self.call_loop_method(*state, name, args),
            Val::Function(_) => {
                let [keys, value] = args.places("fromkeys", 1)?;
                let value = value.unwrap_or(Val::None);
                let keys = iterate::list(&keys.expect("required"), self.meter)?;
                Val::dict(keys.into_iter().map(|key| (key, value.clone())).collect(), self.meter)
            }
            other => refused(format_args!("the method `{name}` of `{}`", other.type_name())),
        }
    }

    fn call_loop_method(&mut self, state: usize, name: &str, args: Args<'t>) -> Outcome<Val<'t>> {
        if !args.named.is_empty() {
            return type_error(format!("{name}() takes no keyword arguments"));
        }
        if name == "changed" {
            let value = Val::tuple(args.positional)?;
            let changed = match &self.loops[state].changed {
                Some(last) => !equal(last, &value, self.meter)?,
                None => true,
            };
            self.loops[state].changed = Some(value);
            return Ok(Val::Bool(changed));
        }
        if args.positional.is_empty() {
            return type_error("no items for cycling given");
        }
        let index = self.loops[state].index.saturating_sub(1);
        Ok(args.positional[index % args.positional.len()].clone())
    }

    /// `index` and `count` of a list.
    fn search(&mut self, items: &[Val<'t>], name: &str, args: Args<'t>) -> Outcome<Val<'t>> {
        let [wanted, start, stop]: [Option<Val<'t>>; 3] = args.places(name, 1)?;
        let wanted = wanted.expect("required");
        if name == "count" && start.is_some() {
            return type_error("count() takes exactly one argument");
        }
        let length = i128::try_from(items.len()).expect("a length fits 128 bits");
        let bound = |bound: Option<Val<'t>>, default: i128| -> Outcome<usize> {
            let bound = bound.map_or(Ok(default), |bound| int_of(&bound, self.meter))?;
            let bound = if bound < 0 { bound + length } else { bound };
            Ok(usize::try_from(bound.clamp(0, length)).expect("inside of the list"))
        };
        let (start, stop) = (bound(start, 0)?, bound(stop, length)?);
        let mut count = 0;
        for (place, item) in items.iter().enumerate().take(stop).skip(start) {
            if !equal(item, &wanted, self.meter)? {
                continue;
            }
            if name == "index" {
                return Ok(Val::Int(i128::try_from(place).expect("a place fits 128 bits")));
            }
            count += 1;
        }
        if name == "index" { value_error("the value is not in the list") } else { Ok(Val::Int(count)) }
    }
}
