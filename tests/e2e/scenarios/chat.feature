Feature: A chat in OpenAI's form

  Background:
    Given a server on the recite model
    And its alias is "reciter"

  Scenario: A question is answered
    When the user says "count: one"
    Then the answer comes from the assistant and names the model "reciter"
    And its usage counts prompt and answer

  Scenario Outline: An answer may have to be of a form
    When the user says "count: one" and the answer has to match <rule>
    Then the answer is "<text>"

    Examples:
      | rule                                     | text         |
      | {"regex": "t[w]o apples"}                | two apples   |
      | {"choice": ["two apples"]}               | two apples   |

  Scenario: A message without a role is refused
    When a message without a role is sent
    Then the status is 400
    And the error is of type "invalid_request_error"
