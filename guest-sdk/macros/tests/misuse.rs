//! What a job's author reads after a mistake. The messages are part of the interface.

#[test]
fn mistakes_are_told_in_the_words_of_the_sdk() {
    trybuild::TestCases::new().compile_fail("tests/fail/*.rs");
}
