Feature: A key locks the server

  Background:
    Given a server on the recite model
    And its key is "THIS_IS_THE_KEY"

  Scenario: Anybody may ask how it is
    When "/health" is asked for without a key
    Then the status is 200

  Scenario Outline: Who may ask for text
    When "count: one" is continued with the header "<name>: <value>"
    Then the status is <status>

    Examples:
      | name          | value                  | status |
      | Authorization | Bearer THIS_IS_THE_KEY | 200    |
      | X-Api-Key     | THIS_IS_THE_KEY        | 200    |
      | Authorization | Bearer wrong           | 401    |
      | X-Other       | nothing                | 401    |

  Scenario: The refusal has OpenAI's form
    When "count: one" is continued with the header "Authorization: Bearer wrong"
    Then the error is of type "authentication_error"
