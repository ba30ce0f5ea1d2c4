//! A job's parameters: typed, with defaults, and with mistakes told all at once. A parameter never stops the builder:
//! where a value is missing or wrong a placeholder takes its place, and the graph is refused at the end.

use crate::plan::Plan;
use tidemill_abi::ParameterSpec;

/// A parameter asked for by name; say what it is with one of its methods.
///
/// ```
/// use tidemill::prelude::*;
///
/// fn job(job: &mut Job) {
///     let top: usize = job.param("top").default(10);        // given, or 10
///     let label: String = job.param("label").required();    // must be given
///     let seed: Option<u64> = job.param("seed").optional();
///     let strict = job.param("on_error").choice("skip", &[("skip", false), ("fail", true)]);
///     job.source(files(job.param("input")).lines())         // required text
///         .filter(move |line| !strict || line.len() > top)
///         .map(move |line| format!("{label}{seed:?}{line}"))
///         .sink(print());
/// }
///
/// let told = tidemill::testing::describe(job, &[("input", "in"), ("top", "ten"), ("labl", "x")]).unwrap_err();
/// assert_eq!(told, "parameter `top` is `ten`, which is not an integer from 0 to 4294967295
/// parameter `label` (text) is missing: give it as label=VALUE
/// the job has no parameter `labl`: did you mean `label`?".replace("4294967295", &usize::MAX.to_string()));
/// ```
#[must_use = "a parameter is read by `required`, `default`, `optional` or `choice`"]
pub struct Param<'job> {
    pub(crate) plan: &'job Plan,
    pub(crate) name: String,
}

/// What a parameter can be.
pub trait ParamValue: Sized {
    /// For people, with its article: `an integer from 0 to 255`.
    fn expected() -> String;

    /// For people, short: `integer`.
    const KIND: &'static str;

    /// Reads a value.
    fn parse(text: &str) -> Option<Self>;

    /// Writes a value so that `parse` reads it back.
    fn show(&self) -> String;

    /// What stands in for a value that is missing or wrong, until the graph is refused.
    fn placeholder() -> Self;
}

impl Param<'_> {
    /// The value; a mistake when it is not given.
    #[must_use]
    pub fn required<T: ParamValue>(self) -> T {
        self.declare(T::KIND, None);
        match self.given() {
            Some(text) => self
                .read(text, T::parse, T::expected)
                .unwrap_or_else(T::placeholder),
            None => {
                if !self.plan.purpose().allow_missing_parameters {
                    self.plan.mistake(format!(
                        "parameter `{0}` ({1}) is missing: give it as {0}=VALUE",
                        self.name,
                        T::KIND
                    ));
                }
                T::placeholder()
            }
        }
    }

    /// The value, or another when it is not given.
    #[must_use]
    pub fn default<T: ParamValue>(self, value: T) -> T {
        self.declare(T::KIND, Some(value.show()));
        match self.given() {
            Some(text) => self.read(text, T::parse, T::expected).unwrap_or(value),
            None => value,
        }
    }

    /// The value, if it is given.
    #[must_use]
    pub fn optional<T: ParamValue>(self) -> Option<T> {
        self.declare(T::KIND, Some(String::new()));
        self.given()
            .and_then(|text| self.read(text, T::parse, T::expected))
    }

    /// One of several named values; `default` names the one that is taken when the parameter is not given.
    ///
    /// # Panics
    /// When `default` is not one of the names, which is a mistake in the job.
    #[must_use]
    pub fn choice<T: Clone>(self, default: &str, choices: &[(&str, T)]) -> T {
        let names = choices
            .iter()
            .map(|(name, _)| format!("`{name}`"))
            .collect::<Vec<_>>()
            .join(" or ");
        let find = |text: &str| {
            choices
                .iter()
                .find(|(name, _)| *name == text)
                .map(|(_, value)| value.clone())
        };
        self.declare(&names, Some(default.to_owned()));
        let value = find(default).unwrap_or_else(|| {
            panic!(
                "the default `{default}` of parameter `{}` is not one of {names}",
                self.name
            )
        });
        match self.given() {
            Some(text) => self.read(text, find, || names.clone()).unwrap_or(value),
            None => value,
        }
    }

    fn given(&self) -> Option<&str> {
        self.plan
            .purpose()
            .parameters
            .get(&self.name)
            .map(String::as_str)
    }

    fn declare(&self, kind: &str, default: Option<String>) {
        self.plan.declare(ParameterSpec {
            name: self.name.clone(),
            kind: kind.to_owned(),
            default,
        });
    }

    fn read<T>(
        &self,
        text: &str,
        parse: impl FnOnce(&str) -> Option<T>,
        expected: impl FnOnce() -> String,
    ) -> Option<T> {
        let value = parse(text);
        if value.is_none() {
            self.plan.mistake(format!(
                "parameter `{}` is `{text}`, which is not {}",
                self.name,
                expected()
            ));
        }
        value
    }
}

/// Required text, so that a parameter can stand where a path is wanted.
impl From<Param<'_>> for String {
    fn from(param: Param<'_>) -> Self {
        param.required()
    }
}

impl ParamValue for String {
    const KIND: &'static str = "text";

    fn expected() -> String {
        "text".to_owned()
    }

    fn parse(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }

    fn show(&self) -> String {
        self.clone()
    }

    fn placeholder() -> Self {
        "placeholder".to_owned()
    }
}

impl ParamValue for bool {
    const KIND: &'static str = "true or false";

    fn expected() -> String {
        "`true` or `false`".to_owned()
    }

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn placeholder() -> Self {
        false
    }
}

macro_rules! integers {
    ($($integer:ty),+) => {$(
        impl ParamValue for $integer {
            const KIND: &'static str = "integer";

            fn expected() -> String {
                format!("an integer from {} to {}", Self::MIN, Self::MAX)
            }

            fn parse(text: &str) -> Option<Self> {
                text.parse().ok()
            }

            fn show(&self) -> String {
                self.to_string()
            }

            fn placeholder() -> Self {
                1
            }
        }
    )+};
}

integers!(u8, u16, u32, u64, usize, i8, i16, i32, i64);

impl ParamValue for f64 {
    const KIND: &'static str = "number";

    fn expected() -> String {
        "a number".to_owned()
    }

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok().filter(|number: &Self| number.is_finite())
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn placeholder() -> Self {
        1.0
    }
}
