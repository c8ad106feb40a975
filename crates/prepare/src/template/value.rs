//! Values as Python has them. Lists and dictionaries never change: transformers' sandbox forbids it.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::rc::Rc;

use super::limits::{Failure, Kind, MAX_NESTING, Meter, Outcome, type_error};
use crate::value::Value;

/// A text: of the template or the row, or made while rendering.
#[derive(Clone, Debug)]
pub(super) enum Str<'t> {
    Borrowed(&'t str),
    Shared(Rc<str>),
}

impl Deref for Str<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Shared(text) => text,
        }
    }
}

/// A value of Python.
#[derive(Clone, Debug)]
pub(super) enum Val<'t> {
    Undefined(Undefined<'t>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Str<'t>),
    /// markupsafe's `Markup`: what `| safe` and `| escape` give.
    Markup(Str<'t>),
    List(Rc<Seq<'t>>),
    Tuple(Rc<Seq<'t>>),
    Dict(Rc<Dict<'t>>),
    Range(Rc<Steps>),
    View(ViewKind, Rc<Dict<'t>>),
    /// A generator: read once.
    Iter(Rc<Generator<'t>>),
    /// A namespace, a cycler or a joiner, by its place in the renderer: it changes, and may hold itself.
    Namespace(usize),
    Cycler(usize),
    Joiner(usize),
    Loop(usize),
    Macro(usize),
    Function(Function),
    /// A method with what it belongs to.
    Method(Rc<(Val<'t>, &'static str)>),
}

/// Why something is not there.
#[derive(Clone, Debug)]
pub(super) enum Undefined<'t> {
    Name(&'t str),
    Attribute(&'static str, Str<'t>),
    Unsafe(&'static str, Str<'t>),
    Hint(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ViewKind {
    Keys,
    Values,
    Items,
}

/// What a template can call without defining it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    Range,
    Dict,
    Namespace,
    Cycler,
    Joiner,
    RaiseException,
    StrftimeNow,
    Lipsum,
}

/// The items of a list or a tuple.
#[derive(Debug)]
pub(super) struct Seq<'t> {
    pub(super) items: Vec<Val<'t>>,
    depth: u32,
    /// Whether it is a tuple of `groupby`, with the names `grouper` and `list`.
    pub(super) group: bool,
}

/// A `range`.
#[derive(Debug, PartialEq)]
pub(super) struct Steps {
    pub(super) start: i128,
    pub(super) stop: i128,
    pub(super) step: i128,
}

/// Items that are read once. Where making them failed, the failure comes last.
#[derive(Debug)]
pub(super) struct Generator<'t> {
    pub(super) name: &'static str,
    pub(super) rest: RefCell<VecDeque<Outcome<Val<'t>>>>,
}

/// A dictionary in its order.
#[derive(Debug)]
pub(super) struct Dict<'t> {
    pub(super) entries: Vec<(Val<'t>, Val<'t>)>,
    index: Option<HashMap<Key<'t>, usize>>,
    depth: u32,
}

/// Above so many entries a dictionary has an index.
const SMALL_DICT: usize = 12;

impl<'t> Val<'t> {
    pub(super) fn text(text: impl Into<Rc<str>>) -> Self {
        Self::Str(Str::Shared(text.into()))
    }

    pub(super) fn list(items: Vec<Val<'t>>) -> Outcome<Self> {
        Ok(Self::List(Rc::new(Seq::new(items)?)))
    }

    pub(super) fn tuple(items: Vec<Val<'t>>) -> Outcome<Self> {
        Ok(Self::Tuple(Rc::new(Seq::new(items)?)))
    }

    pub(super) fn dict(entries: Vec<(Val<'t>, Val<'t>)>, meter: &Meter) -> Outcome<Self> {
        Ok(Self::Dict(Rc::new(Dict::new(entries, meter)?)))
    }

    pub(super) fn generator(name: &'static str, items: impl IntoIterator<Item = Outcome<Val<'t>>>) -> Self {
        let mut rest = VecDeque::new();
        for item in items {
            let failed = item.is_err();
            rest.push_back(item);
            if failed {
                break;
            }
        }
        Self::Iter(Rc::new(Generator { name, rest: RefCell::new(rest) }))
    }

    /// What a row or a recipe says.
    pub(super) fn of(value: &'t Value) -> Self {
        match value {
            Value::Null => Self::None,
            Value::Bool(value) => Self::Bool(*value),
            Value::Int(value) => Self::Int(*value),
            Value::Float(value) => Self::Float(*value),
            Value::Text(text) => Self::Str(Str::Borrowed(text)),
            Value::List(items) => {
                let items: Vec<Val<'t>> = items.iter().map(Self::of).collect();
                Self::List(Rc::new(Seq::plain(items)))
            }
            Value::Object(fields) => {
                let entry = |(key, value): &'t (String, Value)| (Self::borrowed(key), Self::of(value));
                Self::Dict(Rc::new(Dict::plain(fields.iter().map(entry).collect())))
            }
        }
    }

    /// A dictionary of entries with different keys.
    pub(super) fn of_entries(entries: Vec<(Val<'t>, Val<'t>)>) -> Self {
        Self::Dict(Rc::new(Dict::plain(entries)))
    }

    pub(super) fn borrowed(text: &'t str) -> Self {
        Self::Str(Str::Borrowed(text))
    }

    /// The name of Python's type.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::Markup(_) => "Markup",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::Range(_) => "range",
            Self::View(ViewKind::Keys, _) => "dict_keys",
            Self::View(ViewKind::Values, _) => "dict_values",
            Self::View(ViewKind::Items, _) => "dict_items",
            Self::Iter(generator) => generator.name,
            Self::Namespace(_) => "TemplateNamespace",
            Self::Cycler(_) => "Cycler",
            Self::Joiner(_) => "Joiner",
            Self::Loop(_) => "LoopContext",
            Self::Macro(_) => "Macro",
            Self::Function(_) => "function",
            Self::Method(_) => "builtin_function_or_method",
        }
    }

    /// The characters, of a text or of markup.
    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) | Self::Markup(text) => Some(text),
            _ => None,
        }
    }

    /// A whole number; Python takes booleans for one.
    pub(super) fn as_int(&self) -> Option<i128> {
        match self {
            Self::Int(value) => Some(*value),
            Self::Bool(value) => Some(i128::from(*value)),
            _ => None,
        }
    }

    /// Items of a list or a tuple.
    pub(super) fn items(&self) -> Option<&[Val<'t>]> {
        match self {
            Self::List(seq) | Self::Tuple(seq) => Some(&seq.items),
            _ => None,
        }
    }

    pub(super) fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    /// Python's `bool()`.
    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(value) => *value,
            Self::Int(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Str(text) | Self::Markup(text) => !text.is_empty(),
            Self::List(seq) | Self::Tuple(seq) => !seq.items.is_empty(),
            Self::Dict(dict) | Self::View(_, dict) => !dict.entries.is_empty(),
            Self::Range(steps) => steps.len() > 0,
            _ => true,
        }
    }

    fn depth(&self) -> u32 {
        match self {
            Self::List(seq) | Self::Tuple(seq) => seq.depth,
            Self::Dict(dict) | Self::View(_, dict) => dict.depth,
            Self::Method(method) => method.0.depth() + 1,
            Self::Iter(generator) => {
                let rest = generator.rest.borrow();
                rest.iter().flatten().map(Val::depth).max().unwrap_or(0) + 1
            }
            _ => 0,
        }
    }

    /// Refuses what cannot be a key, and counts what hashing it costs.
    pub(super) fn check_hashable(&self, meter: &Meter) -> Outcome<()> {
        meter.steps(1)?;
        match self {
            Self::List(_) | Self::Dict(_) => type_error(format!("unhashable type: '{}'", self.type_name())),
            Self::Str(text) | Self::Markup(text) => meter.text(text.len()),
            Self::Tuple(seq) => seq.items.iter().try_for_each(|item| item.check_hashable(meter)),
            Self::None | Self::Bool(_) | Self::Int(_) | Self::Float(_) => Ok(()),
            _ => super::limits::refused(format_args!("`{}` as a key", self.type_name())),
        }
    }
}

fn nested(depth: u32) -> Outcome<u32> {
    if depth <= MAX_NESTING {
        return Ok(depth);
    }
    Err(Failure::new(Kind::Limit, format!("expected values nested at most {MAX_NESTING} deep, found more")))
}

impl<'t> Seq<'t> {
    pub(super) fn new(items: Vec<Val<'t>>) -> Outcome<Self> {
        let seq = Self::plain(items);
        nested(seq.depth)?;
        Ok(seq)
    }

    fn plain(items: Vec<Val<'t>>) -> Self {
        let depth = items.iter().map(Val::depth).max().unwrap_or(0) + 1;
        Self { items, depth, group: false }
    }

    pub(super) fn group(grouper: Val<'t>, list: Val<'t>) -> Outcome<Self> {
        Ok(Self { group: true, ..Self::new(vec![grouper, list])? })
    }
}

impl Steps {
    pub(super) fn len(&self) -> i128 {
        let span = if self.step > 0 { self.stop - self.start } else { self.start - self.stop };
        if span <= 0 { 0 } else { (span - 1) / self.step.abs() + 1 }
    }
}

impl<'t> Dict<'t> {
    /// Of keys that come twice the last value counts, at the place of the first.
    #[expect(clippy::mutable_key_type, reason = "what is no text, number, None or tuple of these is no key")]
    pub(super) fn new(entries: Vec<(Val<'t>, Val<'t>)>, meter: &Meter) -> Outcome<Self> {
        meter.steps(entries.len())?;
        entries.iter().try_for_each(|(key, _)| key.check_hashable(meter))?;
        let mut unique: Vec<(Val<'t>, Val<'t>)> = Vec::with_capacity(entries.len());
        let mut places: HashMap<Key<'t>, usize> = HashMap::new();
        for (key, value) in entries {
            let place = *places.entry(Key(key.clone())).or_insert(unique.len());
            match unique.get_mut(place) {
                Some((_, earlier)) => *earlier = value,
                None => unique.push((key, value)),
            }
        }
        let dict = Self::plain(unique);
        nested(dict.depth)?;
        Ok(dict)
    }

    /// Of entries whose keys are different.
    pub(super) fn plain(entries: Vec<(Val<'t>, Val<'t>)>) -> Self {
        let depth = entries.iter().map(|(key, value)| key.depth().max(value.depth())).max().unwrap_or(0) + 1;
        let index = (entries.len() > SMALL_DICT).then(|| {
            let keys = entries.iter().map(|(key, _)| Key(key.clone()));
            keys.zip(0..).collect()
        });
        Self { entries, index, depth }
    }

    pub(super) fn get(&self, key: &Val<'t>) -> Option<&Val<'t>> {
        let place = match &self.index {
            Some(index) => index.get(&Key(key.clone())).copied(),
            None => self.entries.iter().position(|(other, _)| same_key(other, key)),
        };
        place.map(|place| &self.entries[place].1)
    }

    pub(super) fn get_text(&self, key: &str) -> Option<&Val<'t>> {
        let place = match &self.index {
            Some(index) => index.get(&Key(Val::text(key))).copied(),
            None => self.entries.iter().position(|(other, _)| other.as_str() == Some(key)),
        };
        place.map(|place| &self.entries[place].1)
    }
}

/// A value that can be a key of a dictionary.
#[derive(Clone, Debug)]
pub(super) struct Key<'t>(pub(super) Val<'t>);

impl PartialEq for Key<'_> {
    fn eq(&self, other: &Self) -> bool {
        same_key(&self.0, &other.0)
    }
}

impl Eq for Key<'_> {}

impl Hash for Key<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash_key(&self.0, state);
    }
}

/// Whether two keys are equal in Python: numbers by value, whatever their type.
fn same_key<'t>(left: &Val<'t>, right: &Val<'t>) -> bool {
    match (left, right) {
        (Val::Str(left) | Val::Markup(left), Val::Str(right) | Val::Markup(right)) => **left == **right,
        (Val::None, Val::None) => true,
        (Val::Tuple(left), Val::Tuple(right)) => {
            left.items.len() == right.items.len()
                && left.items.iter().zip(&right.items).all(|(left, right)| same_key(left, right))
        }
        (Val::Float(left), Val::Float(right)) => left == right,
        (Val::Float(float), other) | (other, Val::Float(float)) => {
            other.as_int().is_some_and(|int| whole(*float) == Some(int))
        }
        (left, right) => left.as_int().is_some() && left.as_int() == right.as_int(),
    }
}

/// The whole number that a float is, if it is one.
pub(super) fn whole(float: f64) -> Option<i128> {
    (float.fract() == 0.0 && float.abs() < 1e38).then_some(float as i128)
}

fn hash_key<H: Hasher>(value: &Val<'_>, state: &mut H) {
    match value {
        Val::Str(text) | Val::Markup(text) => (**text).hash(state),
        Val::Tuple(seq) => seq.items.iter().for_each(|item| hash_key(item, state)),
        Val::Float(float) => match whole(*float) {
            Some(int) => int.hash(state),
            None => float.to_bits().hash(state),
        },
        other => other.as_int().unwrap_or(-1).hash(state),
    }
}
