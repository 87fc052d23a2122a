Feature: Text is continued
  A prompt comes in, its continuation goes out, whole or piece by piece.

  Background: A model that knows one text by heart
    Given a server on the recite model
    And it has 2 slots and 64 tokens of context for each

  Scenario: The text goes on to its end
    When "count: one" is continued
    Then the answer is " two three four five six seven eight nine ten héllo 世界 😀 end"
    And it ends because the model ended it

  Scenario Outline: As many tokens as were asked for
    When "count: one" is continued by at most <n> tokens
    Then the answer is "<text>"
    And it ends because the limit was reached

    Examples:
      | n | text            |
      | 1 | two             |
      | 3 | two three four  |

  Scenario: A stop word ends the answer and is not part of it
    When "count: one" is continued until "four"
    Then the answer is " two three "
    And it ends because a stop word came

  Scenario: A stream says the same
    When "count: one" is streamed
    Then the answer is " two three four five six seven eight nine ten héllo 世界 😀 end"
    And no piece of it held half a character

  Scenario: The same question again is mostly remembered
    Given "count: one two three" was continued
    When "count: one two three" is continued
    Then only 1 token of the prompt was evaluated
