Feature: What a slot has read can be kept in a file

  Background:
    Given a server on the recite model
    And it has 2 slots and 64 tokens of context for each
    And it keeps slots in a folder

  Scenario: Save, erase, restore
    Given "count: one two three four" was continued by at most 1 token in slot 0
    When slot 0 is saved as "count.bin"
    And slot 0 is erased
    And slot 1 is restored from "count.bin"
    And "count: one two three four" is continued in slot 1
    Then only 1 token of the prompt was evaluated

  Scenario Outline: A file name is a name, not a path
    When slot 0 is saved as "<name>"
    Then the status is 400

    Examples:
      | name           |
      | ../escaped.bin |
      | /tmp/else.bin  |
