Feature: Many clients at once
  There are more clients than slots, and nobody is turned away.

  Scenario: The rest waits its turn
    Given a server on the recite model
    And it has 2 slots and 64 tokens of context for each
    When 8 clients ask for "count: one" at once
    Then each of them gets " two three four five six seven eight nine ten héllo 世界 😀 end"
    And in the end all slots are free

  Scenario: A client that hangs up frees its slot
    Given a server on the tiny model
    And it has 1 slot and 2048 tokens of context for each
    When a client asks for endless text and hangs up after the first piece
    Then in the end all slots are free
