//! Calls: arguments, functions of the environment, macros.

use std::rc::Rc;

use super::ast::Arguments;
use super::ast::Function as MacroFunction;
use super::limits::{Failure, Kind, Meter, Outcome, raised, refused, type_error, value_error};
use super::operators::undefined_error;
use super::printing::to_str;
use super::render::{MacroValue, Renderer};
use super::value::{Function, Steps, Str, Undefined, Val};
use super::{iterate, methods};

/// Items of a range that the sandbox of Jinja2 allows.
const MAX_RANGE: i128 = 100_000;

/// Arguments of a call.
#[derive(Clone, Debug, Default)]
pub(super) struct Args<'t> {
    pub(super) positional: Vec<Val<'t>>,
    pub(super) named: Vec<(Str<'t>, Val<'t>)>,
}

impl<'t> Args<'t> {
    /// The arguments by the names of the function's parameters; the first `required` of them must be there.
    pub(super) fn bind<const N: usize>(
        self,
        function: &str,
        names: [&str; N],
        required: usize,
    ) -> Outcome<[Option<Val<'t>>; N]> {
        let mut bound = [const { None }; N];
        if self.positional.len() > N {
            return type_error(format!(
                "{function}() takes at most {N} arguments ({} given)",
                self.positional.len()
            ));
        }
        for (place, value) in bound.iter_mut().zip(self.positional) {
            *place = Some(value);
        }
        for (name, value) in self.named {
            let place = names.iter().position(|other| *other == &*name);
            match place.map(|place| &mut bound[place]) {
                Some(place @ None) => *place = Some(value),
                Some(Some(_)) => {
                    return type_error(format!("{function}() got multiple values for argument '{}'", &*name));
                }
                None => {
                    return type_error(format!(
                        "{function}() got an unexpected keyword argument '{}'",
                        &*name
                    ));
                }
            }
        }
        match bound[..required].iter().position(Option::is_none) {
            Some(place) => {
                type_error(format!("{function}() missing the required argument '{}'", names[place]))
            }
            None => Ok(bound),
        }
    }

    /// The arguments of a function of Python that takes no names.
    pub(super) fn places<const N: usize>(
        self,
        function: &str,
        required: usize,
    ) -> Outcome<[Option<Val<'t>>; N]> {
        if !self.named.is_empty() {
            return type_error(format!("{function}() takes no keyword arguments"));
        }
        self.bind(function, ["of the function"; N], required)
    }
}

/// A function of the environment.
pub(super) fn global(name: &str) -> Option<Function> {
    Some(match name {
        "range" => Function::Range,
        "dict" => Function::Dict,
        "namespace" => Function::Namespace,
        "cycler" => Function::Cycler,
        "joiner" => Function::Joiner,
        "raise_exception" => Function::RaiseException,
        "strftime_now" => Function::StrftimeNow,
        "lipsum" => Function::Lipsum,
        _ => return None,
    })
}

impl<'t> Renderer<'t, '_> {
    pub(super) fn arguments(&mut self, arguments: &'t Arguments) -> Outcome<Args<'t>> {
        let mut positional = Vec::with_capacity(arguments.positional.len());
        for argument in &arguments.positional {
            positional.push(self.eval(argument)?);
        }
        let mut named = Vec::with_capacity(arguments.named.len());
        for (name, value) in &arguments.named {
            named.push((Str::Borrowed(name), self.eval(value)?));
        }
        if let Some(more) = &arguments.more_positional {
            let more = self.eval(more)?;
            positional.extend(iterate::list(&more, self.meter)?);
        }
        if let Some(more) = &arguments.more_named {
            let more = self.eval(more)?;
            let Val::Dict(dict) = &more else {
                return type_error(format!("argument after ** must be a mapping, not {}", more.type_name()));
            };
            self.meter.steps(dict.entries.len())?;
            for (key, value) in &dict.entries {
                match key {
                    Val::Str(key) => named.push((key.clone(), value.clone())),
                    _ => return type_error("keywords must be strings"),
                }
            }
        }
        for (index, (name, _)) in named.iter().enumerate() {
            if named[..index].iter().any(|(other, _)| **other == **name) {
                return type_error(format!("got multiple values for keyword argument '{}'", &**name));
            }
            self.meter.steps(index)?;
        }
        Ok(Args { positional, named })
    }

    /// Calls a value.
    pub(super) fn call(&mut self, function: &Val<'t>, args: Args<'t>) -> Outcome<Val<'t>> {
        match function {
            Val::Undefined(undefined) => undefined_error(undefined),
            Val::Function(function) => self.call_global(*function, args),
            Val::Macro(called) => self.call_macro(self.macros[*called], args),
            Val::Method(method) => {
                let (receiver, name) = &**method;
                self.call_method(receiver, name, args)
            }
            Val::Loop(state) => {
                let [items] = args.bind("loop", ["iterable"], 1)?;
                self.call_loop(*state, &items.expect("required"))
            }
            Val::Cycler(cycler) => {
                let [] = args.bind("next", [], 0)?;
                let _ = cycler;
                type_error("'Cycler' object is not callable")
            }
            Val::Joiner(joiner) => {
                let [] = args.bind("joiner", [], 0)?;
                let (separator, used) = &mut self.joiners[*joiner];
                Ok(if std::mem::replace(used, true) { separator.clone() } else { Val::borrowed("") })
            }
            other => type_error(format!("'{}' object is not callable", other.type_name())),
        }
    }

    fn call_global(&mut self, function: Function, args: Args<'t>) -> Outcome<Val<'t>> {
        match function {
            Function::Range => range(args),
            Function::Dict => self.dict_of(args),
            Function::Namespace => self.namespace(args),
            Function::Cycler => {
                if args.positional.is_empty() {
                    return raised("at least one item has to be provided");
                }
                let Args { positional, named } = args;
                let [] = Args { positional: Vec::new(), named }.bind("cycler", [], 0)?;
                self.cyclers.push((positional, 0));
                Ok(Val::Cycler(self.cyclers.len() - 1))
            }
            Function::Joiner => {
                let [separator] = args.bind("joiner", ["sep"], 0)?;
                self.joiners.push((separator.unwrap_or(Val::borrowed(", ")), false));
                Ok(Val::Joiner(self.joiners.len() - 1))
            }
            Function::RaiseException => {
                let [message] = args.bind("raise_exception", ["message"], 1)?;
                raised(&*to_str(&message.expect("required"), self.meter)?)
            }
            Function::StrftimeNow => {
                let [format] = args.bind("strftime_now", ["format"], 1)?;
                let format = format.expect("required");
                let Some(format) = format.as_str() else {
                    return type_error("strftime() argument 1 must be str");
                };
                let Some(now) = self.now else {
                    let message = "`strftime_now` needs a date of the recipe: the same data must give the same \
                                   sequences tomorrow\nhint: set `data.template_date = \"2025-01-31\"`";
                    return Err(Failure::new(Kind::Refused, message));
                };
                now.format(format).map(Val::text)
            }
            Function::Lipsum => refused("`lipsum`"),
        }
    }

    /// Entries of the first argument (a mapping, or pairs), then the named ones.
    fn entries(&mut self, function: &str, args: Args<'t>) -> Outcome<Vec<(Val<'t>, Val<'t>)>> {
        let mut positional = args.positional;
        if positional.len() > 1 {
            return type_error(format!("{function} expected at most 1 argument, got {}", positional.len()));
        }
        let mut entries = match positional.pop() {
            None => Vec::new(),
            Some(Val::Dict(dict)) => dict.entries.clone(),
            Some(pairs) => {
                let mut entries = Vec::new();
                for pair in iterate::list(&pairs, self.meter)? {
                    match <[Val<'t>; 2]>::try_from(iterate::list(&pair, self.meter)?) {
                        Ok([key, value]) => entries.push((key, value)),
                        Err(_) => return value_error("dictionary update sequence element is no pair"),
                    }
                }
                entries
            }
        };
        entries.extend(args.named.into_iter().map(|(name, value)| (Val::Str(name), value)));
        self.meter.steps(entries.len())?;
        Ok(entries)
    }

    fn dict_of(&mut self, args: Args<'t>) -> Outcome<Val<'t>> {
        let entries = self.entries("dict", args)?;
        Val::dict(entries, self.meter)
    }

    fn namespace(&mut self, args: Args<'t>) -> Outcome<Val<'t>> {
        let entries = self.entries("namespace", args)?;
        self.namespaces.push(Vec::new());
        let namespace = self.namespaces.len() - 1;
        for (name, value) in entries {
            match name {
                Val::Str(name) => self.set_in_namespace(namespace, name, value)?,
                _ => return refused("a namespace with names that are no text"),
            }
        }
        Ok(Val::Namespace(namespace))
    }

    pub(super) fn set_in_namespace(
        &mut self,
        namespace: usize,
        name: Str<'t>,
        value: Val<'t>,
    ) -> Outcome<()> {
        if name.starts_with('_') {
            return raised(format!(
                "chat templates cannot store underscore-prefixed attributes on a namespace, but got '{}'",
                &*name
            ));
        }
        let attributes = &mut self.namespaces[namespace];
        self.meter.steps(1 + attributes.len() / 16)?;
        match attributes.iter_mut().find(|(other, _)| **other == *name) {
            Some((_, earlier)) => *earlier = value,
            None => attributes.push((name, value)),
        }
        Ok(())
    }

    pub(super) fn macro_value(&mut self, function: &'t MacroFunction) -> Val<'t> {
        self.macros.push(MacroValue { function, parent: self.frame });
        Val::Macro(self.macros.len() - 1)
    }

    fn call_macro(&mut self, called: MacroValue<'t>, mut args: Args<'t>) -> Outcome<Val<'t>> {
        let function = called.function;
        let count = function.parameters.len();
        let name = function.name.as_deref().unwrap_or("caller");
        let mut values: Vec<Option<Val<'t>>> = Vec::with_capacity(count);
        let more = args.positional.split_off(args.positional.len().min(count));
        values.extend(args.positional.into_iter().map(Some));
        for parameter in &function.parameters[values.len()..] {
            let place = args.named.iter().position(|(other, _)| **other == *parameter.name);
            values.push(place.map(|place| args.named.remove(place).1));
        }
        let mut caller = None;
        if function.caller.is_some() {
            let place = args.named.iter().position(|(other, _)| &**other == "caller");
            caller =
                place.map(|place| args.named.remove(place).1).filter(|caller| !matches!(caller, Val::None));
        }
        if let (None, Some((unexpected, _))) = (function.kwargs, args.named.first()) {
            return type_error(format!("macro '{name}' takes no keyword argument '{}'", &**unexpected));
        }
        if function.varargs.is_none() && !more.is_empty() {
            return type_error(format!("macro '{name}' takes not more than {count} argument(s)"));
        }
        let kwargs = args.named.into_iter().map(|(name, value)| (Val::Str(name), value)).collect();
        let kwargs = Val::dict(kwargs, self.meter)?;
        let varargs = Val::tuple(more)?;
        self.call_function(called, |renderer| {
            let caller = caller.unwrap_or(Val::Undefined(Undefined::Hint("No caller defined")));
            for (slot, value) in
                [(function.caller, caller), (function.kwargs, kwargs), (function.varargs, varargs)]
            {
                if let Some(slot) = slot {
                    renderer.frames[renderer.frame].variables[slot] = Some(value);
                }
            }
            let without_default = count - function.defaults.len();
            for (parameter, value) in function.parameters.iter().zip(&values) {
                renderer.frames[renderer.frame].variables[parameter.place.slot] = value.clone();
            }
            for (index, (parameter, value)) in function.parameters.iter().zip(values).enumerate() {
                if value.is_some() {
                    continue;
                }
                let value = match index.checked_sub(without_default) {
                    Some(default) => renderer.eval(&function.defaults[default])?,
                    None => Val::Undefined(Undefined::Hint("a parameter was not provided")),
                };
                renderer.set(parameter, value);
            }
            Ok(())
        })
    }

    /// An attribute that Python's object has; `None` if it has none of that name.
    pub(super) fn python_attribute(&mut self, value: &Val<'t>, name: &Str<'t>) -> Outcome<Option<Val<'t>>> {
        let unsafe_name = || Ok(Some(Val::Undefined(Undefined::Unsafe(value.type_name(), name.clone()))));
        match value {
            Val::Undefined(undefined) => return undefined_error(undefined),
            Val::Loop(state) if &**name == "cycle" || &**name == "changed" => {
                let _ = state;
                let method = if &**name == "cycle" { "cycle" } else { "changed" };
                return Ok(Some(Val::Method(Rc::new((value.clone(), method)))));
            }
            Val::Loop(state) => {
                if let Some(found) = self.loop_attribute(*state, name)? {
                    return Ok(Some(found));
                }
            }
            Val::Namespace(namespace) => {
                let attributes = &self.namespaces[*namespace];
                self.meter.steps(1 + attributes.len() / 16)?;
                if let Some((_, found)) = attributes.iter().find(|(other, _)| **other == **name) {
                    return Ok(Some(found.clone()));
                }
            }
            Val::Cycler(cycler) if &**name == "current" => {
                let (items, at) = &self.cyclers[*cycler];
                return Ok(Some(items[*at].clone()));
            }
            Val::Macro(called) if &**name == "name" => {
                let name = &self.macros[*called].function.name;
                return Ok(Some(name.as_deref().map_or(Val::None, Val::borrowed)));
            }
            Val::Tuple(seq) if seq.group && (&**name == "grouper" || &**name == "list") => {
                return Ok(Some(seq.items[usize::from(&**name == "list")].clone()));
            }
            Val::Float(_) | Val::Bool(_) | Val::Int(_) if &**name == "real" => {
                return Ok(Some(value.clone()));
            }
            _ => {}
        }
        if methods::is_internal(name) {
            return unsafe_name();
        }
        match methods::method(value, name) {
            methods::Found::Method(method) => Ok(Some(Val::Method(Rc::new((value.clone(), method))))),
            methods::Found::Unsafe => unsafe_name(),
            methods::Found::Refused => {
                refused(format_args!("the attribute `{}` of `{}`", &**name, value.type_name()))
            }
            methods::Found::Nothing => Ok(None),
        }
    }
}

fn range<'t>(args: Args<'t>) -> Outcome<Val<'t>> {
    let bounds: [Option<Val<'t>>; 3] = args.places("range", 1)?;
    let mut numbers = [0; 3];
    for (number, bound) in numbers.iter_mut().zip(&bounds) {
        *number = match bound {
            None => 0,
            Some(Val::Undefined(undefined)) => return undefined_error(undefined),
            Some(bound) => match bound.as_int() {
                Some(int) if int.unsigned_abs() < 1 << 100 => int,
                Some(_) => return refused("a range of numbers beyond 100 bits"),
                None => {
                    let found = bound.type_name();
                    return type_error(format!("'{found}' object cannot be interpreted as an integer"));
                }
            },
        };
    }
    let (start, stop) = if bounds[1].is_some() { (numbers[0], numbers[1]) } else { (0, numbers[0]) };
    let step = if bounds[2].is_some() { numbers[2] } else { 1 };
    if step == 0 {
        return value_error("range() arg 3 must not be zero");
    }
    let steps = Steps { start, stop, step };
    if steps.len() > MAX_RANGE {
        return value_error(format!("range too big; the sandbox blocks ranges larger than {MAX_RANGE}"));
    }
    Ok(Val::Range(Rc::new(steps)))
}

/// A whole number of an argument.
pub(super) fn int_of(value: &Val<'_>, _: &Meter) -> Outcome<i128> {
    match value {
        Val::Undefined(undefined) => undefined_error(undefined),
        other => match other.as_int() {
            Some(int) => Ok(int),
            None => type_error(format!("'{}' object cannot be interpreted as an integer", other.type_name())),
        },
    }
}
